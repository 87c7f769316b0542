"""The names that columns usually have, in whatever style: `user_id`, `userId`, `User ID` and `USERID` are one."""

import re
from collections.abc import Iterable

_NOT_A_WORD = re.compile(r"[^0-9a-z]")
NONE = 1 << 20
_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")
"""What RecBole's files write behind a name."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


USER = _words(
    "userid user uid userkey userno usernumber useridx usr usrid customerid customer customernumber customerno custid "
    "memberid member memberno reviewerid buyerid shopperid clientid visitorid visitor accountid account profileid "
    "subscriberid viewerid listenerid readerid playerid personid personalid patronid householdid msno reviewer buyer "
    "client viewer userpseudoid username email authorid cookieid deviceid anonymousid sessionid session"
)
ITEM = _words(
    "itemid item iid itemkey itemno parentasin asin productid product productcode prodid skuid sku stockcode goodsid "
    "articleid movieid movie filmid songid trackid track videoid contentid newsid bookid isbn showid gameid appid "
    "recipeid listingid offerid adid postid storyid docid documentid businessid restaurantid venueid poiid locationid "
    "placeid hotelid propertyid jobid courseid artistid albumid podcastid episodeid programid materialid "
    "creativeid noteid spuid trackuri itemuri upc ean gtin article video content"
)
SCENARIO = _words(
    "scenario scenarioid scene sceneid domain domainid surface channel placement pagetype page screen slot tab feed "
    "widget shelf section site siteid marketplace market storefront store shop department source app platform "
    "businessline vertical category maincategory list context country region locale device devicetype"
)
LABEL = _words(
    "label clicked click isclick isclicked clicks liked like islike isliked target y purchased purchase ispurchase "
    "bought isbuy buy converted conversion isconversion ordered booked watched played completed finished longview "
    "response responded positive ispositive relevant relevance engaged saved favorite favourite "
    "recommended isrecommended"
)
STARS = _words(
    "rating ratings stars star score overall reviewscore reviewrating reviewoverall starrating ratingvalue ratingscore "
    "userrating bookrating grade preference"
)
EVENT = _words("event eventtype eventname action actiontype behavior behaviour behaviortype interaction activity type")
ORDER = _words(
    "timestamp ts time datetime eventtimestamp eventtime eventts eventdatetime clickedat clicktime createdat "
    "createtime created occurredat happenedat servertime requesttime logtime timems timestampms unixtimestamp "
    "unixreviewtime unixtime epoch epochms utc tdat orderedat ordertime orderdate purchasedat purchasetime "
    "purchasedate transactiondate transactiontime watchedat playedat viewedat invoicedate reviewtime reviewdate "
    "ratedat date day dt seqpos position pos seq sequence step rank ordernumber order"
)
VISIT = _words(
    "orderid orderno invoice invoiceno invoiceid transactionid transaction basketid cartid receiptid eventid requestid "
    "impressionid logid rowid recordid reviewid visitid index row id"
)
"""What tells rows or visits apart, and neither users nor items."""
TITLE = _words(
    "title itemtitle producttitle movietitle booktitle tracktitle name itemname productname prodname moviename "
    "trackname songname displayname headline itemtext text caption label shortdescription description summary"
)
CATEGORY = _words(
    "categorypath categories category categoryname itemcategory productcategory genres genre breadcrumbs breadcrumb "
    "taxonomy maincategory categoryid department departmentname section topics topic producttype productgroup "
    "producttypename subcategory class cat tags"
)
CONTEXT = _words(
    "device devicetype devicecategory os platform browser hour hourofday weekday dayofweek isweekend daypart country "
    "region city locale language lang referrer trafficsource network connectiontype appversion"
)
"""What is known when a list is ranked; what a user did with an item is not."""


def has_word(name: str, usual: tuple[str, ...]) -> bool:
    """Whether one of the words of which the name is made is a usual name, as in `sales_channel_id`."""
    words = re.findall(r"[a-z]+|[A-Z][a-z]*|[A-Z]+", name)
    return any(word.lower() in usual for word in words)


def plain(name: str) -> str:
    """The name in lower case without blanks, marks and types."""
    return _NOT_A_WORD.sub("", _TYPE.sub("", name.strip()).lower())


def rank(name: str, usual: tuple[str, ...], loosely: bool = False) -> int:
    """How usual the name is, 0 the most; `NONE` if it is none of them.

    Loosely, it may have more before or behind a usual name of an id, as `hashed_user_id` has.
    """
    known = plain(name)
    if known in usual:
        return usual.index(known)
    ids = [one for one in usual if one.endswith(("id", "asin", "no", "sku"))] if loosely else []
    return next((len(usual) + at for at, one in enumerate(ids) if known.endswith(one) or known.startswith(one)), NONE)


def choose(names: Iterable[str], usual: tuple[str, ...], loosely: bool = False) -> list[str]:
    """Those of the names that are usual ones, the most usual first."""
    ranks = {name: rank(name, usual, loosely) for name in names}
    return sorted((name for name in ranks if ranks[name] < NONE), key=lambda name: ranks[name])
