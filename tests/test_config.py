"""Configurations of one's own: by name and changes, from files, refused in words."""

import json

import pytest

from gradmill_hw.config import CONFIGS, NANO, SIM, Config, ConfigError, derive, get_config


def test_a_changed_configuration_says_what_it_is():
    changed = SIM.replace(n=4, bus_bits=128)
    assert changed.name == "sim with n=4, bus_bits=128"
    assert changed.replace(n=8).replace(tiles=2).name == "sim with n=8, bus_bits=128, tiles=2"
    assert SIM.replace(n=8, tiles=4) == SIM, "nothing is different"
    named = NANO.replace(name="board with ddr")
    assert named.replace(tiles=2).name == "board with ddr with tiles=2"
    assert Config(n=4, bus_bits=128).replace(tiles=2).name == "custom"


def test_the_bus_keeps_its_bits_per_lane():
    assert derive(SIM, {"n": 4}) == SIM.replace(n=4, bus_bits=128, name="sim with n=4")
    assert derive(NANO, {"n": 8}).bus_bits == 64
    assert derive(SIM, {"n": 4, "bus_bits": 64}).bus_bits == 64


@pytest.mark.parametrize(("name", "text"), [
    ("board.toml", 'base = "nano"\ntensor_rows = 2048\nstash = true\n'),
    ("board.json", json.dumps({"base": "nano", "tensor_rows": 2048, "stash": True})),
])
def test_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    expected = NANO.replace(tensor_rows=2048, stash=True, name="board")
    assert get_config(tmp_path / name) == get_config(str(tmp_path / name)) == expected
    (tmp_path / "whole.toml").write_text('name = "mine"\nn = 4\nbus_bits = 128\n')
    assert get_config(tmp_path / "whole.toml") == Config(name="mine", n=4, bus_bits=128)


@pytest.mark.parametrize(("text", "words"), [
    ("n = ", "is not TOML"),
    ('base = "huge"', "base='huge': choose one of nano, edge"),
    ("bank = 2", "has no 'bank', did you mean 'banks'"),
    ("rows = [1]\nzzz = 2", "has no 'rows'.*Choose among name, n, tiles"),
    ('n = "4"', "n='4': write a whole number"),
    ("tiles = true", "tiles=True: write a whole number"),
    ("name = 3", "name=3: write a name"),
    ("n = 5", "n=5 is not built: choose 4, 8, 16 or 32"),
])
def test_files_that_are_refused(tmp_path, text, words):
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"configuration {path}.*{words}"):
        get_config(path)


@pytest.mark.parametrize(("given", "words"), [
    ("huge", "unknown configuration 'huge': choose one of nano, .* a .toml or .json file"),
    ("missing.toml", "configuration missing.toml: No such file"),
    (None, "unknown configuration None"),
])
def test_what_is_no_configuration(given, words):
    with pytest.raises(ConfigError, match=words):
        get_config(given)


def test_a_list_is_no_configuration(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match="write fields of a Config"):
        get_config(tmp_path / "list.json")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda config: config.name)
def test_bytes_on_chip(config):
    """As wide as the rows in memory, whose granules the exponent fills up."""
    bits = sum(getattr(config, f"{kind}_rows") * width for kind, width in (
        ("tensor", config.n * config.mantissa_bits + 8), ("acc", 32 * config.n),
        ("mask", config.n)))
    assert 8 * config.memory_bytes == bits
