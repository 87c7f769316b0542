"""From raw rows to prepared tables of numbers: read, checked, split and described."""
