"""A tokenizer with a chat template, for the tests of encoding."""

import pytest
from hf_fixtures import save_tokenizer
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    return directory


@pytest.fixture
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)
