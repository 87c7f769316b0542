from typing import get_args

import pytest

from llm4msr.config import SourceConfig
from llm4msr.data.sources import find


@pytest.mark.parametrize("kind", get_args(SourceConfig.model_fields["kind"].annotation))
def test_each_kind_that_the_config_allows_has_a_module_that_reads_it(kind: str):
    source = find(kind)
    assert callable(source.read)
    assert callable(source.fingerprint)
