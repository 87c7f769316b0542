import pyarrow as pa
import pytest

from llm4msr import schema
from llm4msr.errors import DataError

GOOD = pa.table({"user": pa.array([1, 2], pa.int64()), "user_id": ["a", "b"], "more": [None, 1.5]})


def test_a_table_that_fits_is_given_back():
    assert schema.check(GOOD, schema.USERS, "users") is GOOD


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GOOD.drop_columns("user_id"), "users: column 'user_id' is missing; it has user, more"),
        (GOOD.set_column(0, "user", pa.array(["1", "2"])), "users: column 'user' is string, expected int64"),
        (GOOD.set_column(1, "user_id", pa.array(["a", None])), "users: column 'user_id' is empty in row 2"),
    ],
)
def test_what_does_not_fit_is_named(table: pa.Table, message: str):
    with pytest.raises(DataError) as caught:
        schema.check(table, schema.USERS, "users")
    assert str(caught.value) == message


@pytest.mark.parametrize("width", [1, 576])
def test_vectors_are_fixed_size_lists_of_halves(width: int):
    assert schema.knowledge(width).field("vector").type == pa.list_(pa.float16(), width)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [(["item_id", "tags", "category"], "category"), (["item_id", "tags", "more"], "tags"), (["item_id"], None)],
)
def test_prompts_show_the_category_before_other_lists(fields: list[str], wanted: str | None):
    lists = pa.array([[1]], pa.list_(pa.int64()))
    items = pa.table({"f:item_id": [1], "f:tags": lists, "f:category": lists, "f:more": lists})
    assert schema.category_field(items, fields) == wanted
