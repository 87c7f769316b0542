"""How files become checked columns, whatever the kind of source."""
