"""The rules that a profile enforces on whoever writes one."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiles import schema
from profiles.schema import ArmRow, DeviceInfo, Profile, Quality, Quantity, absent


def row(**changes: object) -> dict:
    fields = {
        "operator": "o_proj",
        "n": 64,
        "k": 128,
        "batch": 1,
        "format": "int4-g128",
        "activation": "bf16",
        "arm": "fused",
        "implementation": "numba",
        "variant": "default",
        "weight_format": "int4-g128",
        "launch_mode": "eager",
        "cache_state": "cold",
        "kind": "measured",
        "time_s": {"value": 2.0, "low": 1.0, "high": 3.0, "n": 24},
    }
    return fields | changes


def profile(**changes: object) -> dict:
    fields = {
        "created": "2026-01-31T12:00:00Z",
        "kind": "measured",
        "complete": True,
        "device": {
            "name": "cpu",
            "kind": "cpu",
            "uuid_hash": "ab",
            "cores": 2,
            "last_level_cache_bytes": 1,
            "memory_bytes": 1,
            "capability": "avx2",
        },
        "software": dict.fromkeys(("python", "os", "numpy", "torch", "triton", "numba"), "1")
        | {"driver": None, "cuda": None, "threading_layer": "omp"}
        | {"missing": {"driver": "no GPU", "cuda": "no GPU"}},
        "git": {"commit": "a" * 40, "dirty": False},
        "argv": ["bench"],
        "workload": {
            "model": "tiny",
            "layers": 2,
            "operators": [{"name": "o_proj", "n": 64, "k": 128}],
            "activation": "bf16",
            "formats": ["int4-g128"],
            "batches": [1],
            "launch_mode": "eager",
            "cache_state": "cold",
            "rotation_bytes": 1,
            "seeds": {"weights": 1},
        },
        "kernels_sha256": "0" * 64,
        "protocol": {
            "pilot_blocks": 10,
            "fresh_blocks_minimum": 20,
            "fresh_blocks_maximum": 90,
            "processes": 3,
            "target_half_width": 0.05,
            "confidence": 0.95,
            "sample_minimum_s": 0.001,
        },
        "rows": [row()],
        "comparisons": [],
    }
    return fields | changes


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"value": None}, "needs a reason"),
        ({"value": 1.0}, "needs a reason"),
        ({"value": None, "reason": "  "}, "needs a reason"),
        ({"value": 1.0, "low": 0.5, "reason": "r"}, "come together"),
        ({"value": None, "low": 0.0, "high": 1.0, "reason": "r"}, "needs a value"),
        ({"value": 4.0, "low": 1.0, "high": 3.0}, "not within"),
        ({"value": 1.0, "low": 3.0, "high": 1.0}, "not within"),
        ({"value": math.nan, "reason": "r"}, "finite"),
        ({"value": 1.0, "low": -math.inf, "high": math.inf}, "finite"),
        ({"value": 1.0, "low": 1.0, "high": 1.0, "unit": "s"}, "Extra inputs"),
        ({"value": 1.0, "low": 1.0, "high": 1.0, "kind": "guessed"}, "measured"),
    ],
)
def test_quantity_refuses(fields: dict, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Quantity.model_validate(fields)


def test_quantity_accepts_a_value_an_interval_or_a_reason() -> None:
    assert Quantity(value=2, low=2, high=2, n=20).kind == "measured"
    assert Quantity(value=2, reason="one block has no interval").low is None
    assert absent("no sensor", "modelled").reason == "no sensor"


def test_quantity_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        absent("r").value = 1.0


def test_every_null_fact_needs_a_reason() -> None:
    facts = profile()["device"] | {"uuid_hash": None}
    with pytest.raises(ValidationError, match="uuid_hash is null"):
        DeviceInfo.model_validate(facts)
    explained = DeviceInfo.model_validate(facts | {"missing": {"uuid_hash": "no id"}})
    assert explained.uuid_hash is None


def test_a_failed_arm_has_no_time() -> None:
    with pytest.raises(ValidationError, match="fast wrong kernel"):
        ArmRow.model_validate(row(failure="wrong numbers"))
    failed = ArmRow.model_validate(row(failure="crashed", time_s=absent("crashed")))
    assert failed.time_s.value is None


def test_only_the_layer_has_no_shape() -> None:
    with pytest.raises(ValidationError, match="n and k are null"):
        ArmRow.model_validate(row(operator="layer"))
    with pytest.raises(ValidationError, match="n and k are null"):
        ArmRow.model_validate(row(n=None, k=None))
    assert ArmRow.model_validate(row(operator="layer", n=None, k=None)).n is None


def test_energy_is_absent_with_a_reason_by_default() -> None:
    assert "not measured" in ArmRow.model_validate(row()).energy_j.reason


def test_quality_explains_its_nulls() -> None:
    with pytest.raises(ValidationError, match="needs a reason"):
        Quality(half_width_over_best16=None, between_process_spread_s=0, converged=None)


def test_row_keys_are_unique() -> None:
    with pytest.raises(ValidationError, match="two rows have the key"):
        Profile.model_validate(profile(rows=[row(), row(time_s=absent("again"))]))
    Profile.model_validate(profile(rows=[row(), row(weight_format="bf16"), row(batch=2)]))


def test_kinds_are_never_mixed() -> None:
    modelled = {"value": 1.0, "low": 1.0, "high": 1.0, "kind": "modelled"}
    for rows in ([row(energy_j=modelled)], [row(kind="modelled")]):
        with pytest.raises(ValidationError, match="holds only measured values"):
            Profile.model_validate(profile(rows=rows))


@pytest.mark.parametrize("created", ["2026-01-31T12:00:00", "2026-01-31T12:00:00+02:00"])
def test_created_is_in_utc(created: str) -> None:
    with pytest.raises(ValidationError, match="UTC"):
        Profile.model_validate(profile(created=created))


def test_samples_file_lies_beside_the_profile() -> None:
    samples = {"file": "../elsewhere.parquet", "sha256": "0" * 64, "rows": 1}
    with pytest.raises(ValidationError, match="pattern"):
        Profile.model_validate(profile(samples=samples))


def test_a_profile_survives_json() -> None:
    before = Profile.model_validate(profile())
    assert Profile.model_validate_json(before.model_dump_json()) == before


def test_schema_json_is_up_to_date() -> None:
    assert schema.SCHEMA_FILE.read_text(encoding="utf-8") == schema.schema_text()
    assert "phi_exposed_s" in json.loads(schema.schema_text())["$defs"]["Comparison"]["properties"]


def test_samples_schema_keeps_reasons_and_checks_them() -> None:
    arrow = schema.samples_schema({"sm_clock_mhz": "no GPU"})
    assert arrow.names == [c.name for c in schema.SAMPLE_COLUMNS]
    assert json.loads(arrow.metadata[b"missing"]) == {"sm_clock_mhz": "no GPU"}
    assert arrow.field("time_s").nullable is False
    with pytest.raises(ValueError, match="time_s"):
        schema.samples_schema({"time_s": "lost"})


def test_import_stays_cheap_and_imports_nothing_of_ours() -> None:
    code = (
        "import sys; import profiles.reader, profiles.shapes; "
        "heavy = ('pyarrow', 'numpy', 'scipy', 'torch', 'bench', 'kernels'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    root = Path(schema.__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
