"""Settings from text and JSON; results on disk."""

from __future__ import annotations

import json

import pytest

from sat_sr.evaluation.records import Records, digest_of_file
from sat_sr.evaluation.settings import combine, parse_setting, read_grid, resolve
from sat_sr.sampling import SamplingSettings


def test_settings_have_types():
    assert parse_setting("sampler=dpmpp_2m, num_steps=10,sigma_max=5") == {
        "sampler": "dpmpp_2m",
        "num_steps": 10,
        "sigma_max": 5.0,
    }
    assert parse_setting("init_noise=false,preset=fast") == {"init_noise": False, "preset": "fast"}
    assert parse_setting("") == {}


def test_a_setting_goes_over_the_defaults_of_the_checkpoint():
    defaults, fast = SamplingSettings(sigma_max=5.0), SamplingSettings("euler", num_steps=4)
    assert resolve({"num_steps": 3, "seed": 7}, defaults, None) == SamplingSettings(num_steps=3, sigma_max=5.0)
    assert resolve({"preset": "fast", "sigma_max": 2.0}, defaults, fast) == SamplingSettings(
        "euler", num_steps=4, sigma_max=2.0
    )
    with pytest.raises(ValueError, match="preset fast: the checkpoint has none"):
        resolve({"preset": "fast"}, defaults, None)


@pytest.mark.parametrize(
    "text", ["num_steps=2.5", "num_steps", "sigma_max=high", "steps=3", "preset=best", "init_noise=1"]
)
def test_wrong_settings(text):
    with pytest.raises(ValueError, match="setting"):
        parse_setting(text)


def test_grid_is_a_product(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text('[{"sampler": ["heun", "euler"], "num_steps": [2, 4], "sigma_max": 5}, {"seed": 1}]')
    settings = read_grid(path)
    assert len(settings) == 5 and settings[1] == {"sampler": "heun", "num_steps": 4, "sigma_max": 5.0}
    assert combine({"num_steps": 8}, [*settings, {"seed": 1}])[-1] == {"num_steps": 8, "seed": 1}
    assert len(combine({}, [{"seed": 1}, {"seed": 1}])) == 1 and combine({"seed": 3}, []) == [{"seed": 3}]


@pytest.mark.parametrize(
    "text", ["{", "[3]", '{"num_steps": 2.5}', '{"num_steps": true}', '{"sampler": 3}', '{"steps": 1}']
)
def test_wrong_grids(tmp_path, text):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json: "):
        read_grid(path)


def test_records_survive_a_cut_line(tmp_path):
    path = tmp_path / "records.jsonl"
    records = Records(path)
    records.add("run", "a", figures={"psnr_y": 1.5}, seconds=2.0)
    records.add("run", "a", figures={"ssim_y": None})
    records.add("run", "b", figures={"psnr_y": 3.0})
    path.write_bytes(path.read_bytes()[:-9])  # killed while writing
    again = Records(path)
    assert again.broken == [3] and again.get("run", "b") == {}
    assert again.get("run", "a") == {"figures": {"psnr_y": 1.5, "ssim_y": None}, "seconds": 2.0}
    again.add("run", "b", figures={"psnr_y": 4.0})
    assert Records(path).get("run", "b") == {"figures": {"psnr_y": 4.0}}
    lines = path.read_text().splitlines()
    assert [json.loads(line)["picture"] for line in lines[:2] + lines[3:]] == ["a", "a", "b"]


def test_digest_of_a_folder_sees_names_and_content(tmp_path):
    (tmp_path / "ckpt").mkdir()
    file = tmp_path / "ckpt" / "weights"
    file.write_bytes(b"x" * 3_000_000)
    first, alone = digest_of_file(tmp_path / "ckpt"), digest_of_file(file)
    file.write_bytes(b"x" * 2_999_999 + b"y")
    assert digest_of_file(tmp_path / "ckpt") != first and digest_of_file(file) != alone
    file.write_bytes(b"x" * 3_000_000)
    assert digest_of_file(tmp_path / "ckpt") == first
    file.rename(file.with_name("other"))
    assert digest_of_file(tmp_path / "ckpt") != first
