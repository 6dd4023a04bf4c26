"""What --conf accepts: every key, its rule, and the sentence for whoever breaks it."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from loop.config import DATASET_FILE, AppConfig
from loop.errors import BadInput, NotFound

KEYS = {spec.name: spec for spec in fields(AppConfig)}


def as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def configured(folder: Path, **conf: str) -> AppConfig:
    return AppConfig.from_conf(conf, str(folder))


def described(folder: Path, content: Any) -> Path:
    (folder / DATASET_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_without_conf_everything_is_the_default(tmp_path: Path) -> None:
    assert configured(tmp_path) == AppConfig()


@pytest.mark.parametrize("key", sorted(KEYS.keys() - {"parameters"}))
def test_every_default_is_valid_has_a_meaning_and_can_be_written(tmp_path: Path, key: str) -> None:
    default = KEYS[key].default
    assert KEYS[key].metadata["help"]
    assert getattr(configured(tmp_path, **{key: as_text(default)}), key) == default


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("labels", " liver , spleen,tumour ", ("liver", "spleen", "tumour")),
        ("unit", "volume", "volume"),
        ("axis", "2", "2"),
        ("budget", "25", 25),
        ("rescan_seconds", "5", 5.0),
        ("learning_rate", "1e-4", 1e-4),
        ("spacing", "0.5, 2", (0.5, 2.0)),
        ("patch", "64,64,32", (64, 64, 32)),
        ("patch", "", ()),
        ("validation_share", "0", 0.0),
        ("retrain", "FALSE", False),
        ("retrain", "on", True),
        ("allow_reload", "yes", True),
        ("allow_reload", "0", False),
        ("cors_origins", "http://a:1,http://b", ("http://a:1", "http://b")),
        ("patient_pattern", r"p(\d+)", r"p(\d+)"),
    ],
)
def test_text_becomes_the_type_of_the_key(tmp_path: Path, key: str, text: str, value: Any) -> None:
    found = getattr(configured(tmp_path, **{key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "hint"), [("strategi", "strategy"), ("retrain_afer", "retrain_after"), ("label", "labels"), ("zzz", None)]
)
def test_an_unknown_key_names_the_nearest_and_all_others(tmp_path: Path, key: str, hint: str | None) -> None:
    with pytest.raises(BadInput, match=f"There is no configuration key '{key}'") as caught:
        configured(tmp_path, **{key: "1"})
    assert (f"Did you mean '{hint}'?" in str(caught.value)) == (hint is not None)
    assert f"Known: {', '.join(KEYS)}." in str(caught.value)


def test_keys_of_others_are_ignored(tmp_path: Path) -> None:
    found = AppConfig.from_conf({"models": "x", "budget": "3"}, str(tmp_path), frozenset({"models"}))
    assert found == AppConfig(budget=3)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("budget", "ten", "budget must be a whole number, got 'ten'"),
        ("budget", "1.5", "budget must be a whole number, got '1.5'"),
        ("budget", "", "budget must be a whole number, got ''"),
        ("budget", "0", "budget must be between 1 and 1000000, got 0"),
        ("budget", "1000001", "budget must be between 1 and 1000000"),
        ("learning_rate", "fast", "learning_rate must be a number, got 'fast'"),
        ("learning_rate", "0", "learning_rate must be between"),
        ("learning_rate", "1.1", "learning_rate must be between"),
        ("validation_share", "0.95", "validation_share must be between 0 and 0.9, got 0.95"),
        ("epochs", "-1", "epochs must be at least 1, got -1"),
        ("seed", "-1", "seed must be at least 0"),
        ("learning_rate", "nan", "learning_rate must be between"),
        ("lease_minutes", "inf", "lease_minutes must be at least"),
        ("retrain", "maybe", "retrain must be true or false, got 'maybe'"),
        ("unit", "voxel", "unit must be one of slice, volume, got 'voxel'"),
        ("axis", "3", "axis must be one of auto, 0, 1, 2, got '3'"),
        ("train_from", "zero", "train_from must be one of scratch, current, got 'zero'"),
        ("spacing", "1,a", "spacing must be a number, got 'a'"),
        ("patch", "64,64.5", "patch must be a whole number, got '64.5'"),
        ("patient_pattern", "(", "patient_pattern must be a regular expression, got '('"),
        ("gpus", "0", "gpus must be auto or a number from 1 to 999, got '0'"),
        ("gpus", "all", "gpus must be auto or a number from 1 to 999, got 'all'"),
        ("amp", "on", "amp must be one of auto, off, got 'on'"),
        ("patience", "-1", "patience must be at least 0, got -1"),
        ("labels", "", "labels must name 1 to"),
        ("labels", "a,b,a", "labels must be distinct"),
        ("labels", "a,Background", "labels must not name the background"),
        ("labels", ",".join(f"label_{i}" for i in range(256)), "labels must name 1 to"),
    ],
)
def test_a_wrong_value_says_what_is_right(tmp_path: Path, key: str, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        configured(tmp_path, **{key: text})


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if spec.metadata["low"] is not None])
def test_the_ends_of_a_range_are_in_it(tmp_path: Path, key: str) -> None:
    spec = KEYS[key]
    for bound, step in ((spec.metadata["low"], -1), (spec.metadata["high"], 1)):
        if bound is not None:
            assert getattr(configured(tmp_path, **{key: str(bound)}), key) == bound
            with pytest.raises(BadInput, match=f"{key} must be (between|at least)"):
                configured(tmp_path, **{key: str(bound + step)})


# --- the studies folder's own description


def test_the_folder_describes_itself_and_conf_overrides_it(tmp_path: Path) -> None:
    described(tmp_path, {"labels": ["liver", "spleen"], "patient_pattern": "P.", "more": 1})
    assert configured(tmp_path) == AppConfig(labels=("liver", "spleen"), patient_pattern="P.")
    assert configured(tmp_path, labels="heart") == AppConfig(labels=("heart",), patient_pattern="P.")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1",
        "7",
        {"labels": 3},
        {"labels": None},
        {"patient_pattern": "("},
        {"labels": []},
        {"labels": "liver"},
        {"labels": [1]},
    ],
    ids=str,
)
def test_a_wrong_description_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(BadInput, match=r"nextslice.json must be JSON|patient_pattern must|labels must"):
        configured(described(tmp_path, content))


# --- what is derived


def test_label_values_count_from_one() -> None:
    assert AppConfig(labels=("b", "a")).label_values() == {"b": 1, "a": 2}


def test_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert AppConfig().state_dir("studies") == tmp_path.resolve() / "studies" / ".nextslice"
    assert AppConfig(state="mine").state_dir("studies") == tmp_path.resolve() / "mine"


def test_json_and_back_is_the_same(tmp_path: Path) -> None:
    changed = configured(tmp_path, labels="a,b", spacing="1,2", patch="8,8", retrain="no", budget="3", state="x")
    for config in (AppConfig(), changed):
        assert AppConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_parameters_of_strategies_are_set_one_by_one_and_checked_with_their_strategy(tmp_path: Path) -> None:
    from loop.assembly import checked_config

    conf = {"bald.passes": "4", "sb_mc_variance.background": "false", "spread_over_volumes.inner": "core_set"}
    config = checked_config(str(tmp_path), conf)
    assert config.parameters == {
        "bald": {"passes": 4}, "sb_mc_variance": {"background": False}, "spread_over_volumes": {"inner": "core_set"},
    }  # fmt: skip
    assert AppConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for key, value, message in [
        ("nobody.passes", "4", "'nobody'. Known: .*bald"),
        ("bald.steps", "4", "no parameter 'steps'. Known: passes, rate"),
        ("bald.passes", "x", "must be int, got 'x'"),
        ("bald.passes", "1", "between 2 and 1000"),
        ("parameters", "x", "STRATEGY.PARAMETER"),
    ]:
        with pytest.raises((BadInput, NotFound), match=message):
            checked_config(str(tmp_path), {key: value})
