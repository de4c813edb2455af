"""Flags: what is understood, what is refused, and that none is parsed in vain."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sat_sr.cli import arguments
from sat_sr.cli.arguments import SETTLED, make_parser, parse_arguments
from sat_sr.cli.target import Target

ROOT = Path(__file__).resolve().parents[2]

# The generation command of the release's launcher, as its users have it in their scripts.
OF_THE_RELEASE = (
    "--mode inference --inference_type full --block_batch 4 --experiment-name generate --network ckpt/a.pt "
    "--num-layers 28 --vocab-size 1 --hidden-size 1280 --num-attention-heads 16 --nogate --no-crossmask --input-time "
    "adaln --hidden-dropout 0 --attention-dropout 0 --in-channels 6 --out-channels 3 --image-size 512 --patch-size 4 "
    "--config-path config.yaml --max-sequence-length 256 --layernorm-epsilon 1e-6 --layernorm-order pre "
    "--model-parallel-size 1 --tokenizer-type fake --random-position --qk-ln --image-condition --vector-dim 768 "
    "--re-position --cross-lr --seed 32767 --image-block-size 128 --sr-scale 4 --input-type txt --input-path input.txt "
    "--inference-batch-size 1 --bf16 --out-dir samples --round 32 --init_noise --infer_sr_scale 4 --num-steps 18 "
    "--lr_size 0 --crop_size 0"
)


def test_the_releases_command_is_understood_and_its_idle_flags_are_told_once():
    args = parse_arguments(OF_THE_RELEASE.split())
    assert (args.inference_type, args.network, args.dtype, args.round) == ("full", "ckpt/a.pt", "bfloat16", 32)
    assert (args.init_noise, args.num_steps, args.inputs, args.seed) == (True, 18, ["input.txt"], 32767)
    assert args.target == Target(scale=4.0)
    assert args.given_architecture == {
        "num_layers": 28, "hidden_size": 1280, "num_attention_heads": 16, "patch_size": 4, "image_block_size": 128,
        "image_size": 512, "vector_dim": 768,
    }  # fmt: skip
    idle = [note for note in args.notes if note.startswith("accepted for compatibility, without effect: ")]
    assert len(idle) == 1
    assert set(idle[0].partition(": ")[2].split(", ")) == {
        "--vocab-size", "--nogate", "--no-crossmask", "--input-time", "--hidden-dropout", "--attention-dropout",
        "--in-channels", "--out-channels", "--config-path", "--max-sequence-length", "--layernorm-epsilon",
        "--layernorm-order", "--model-parallel-size", "--tokenizer-type", "--random-position", "--qk-ln",
        "--image-condition", "--re-position", "--cross-lr", "--mode", "--sr-scale", "--experiment-name",
        "--inference-batch-size",
    }  # fmt: skip


def test_dashes_and_underscores_are_the_same():
    with_dashes = [f"--{name.replace('_', '-')}" for name in SETTLED if SETTLED[name][0] is True]
    with_underscores = [f"--{name}" for name in SETTLED if SETTLED[name][0] is True]
    assert vars(parse_arguments(with_dashes)) == vars(parse_arguments(with_underscores))
    assert parse_arguments(["--name=a_b{stem}", "--long_side=7"]).name == "a_b{stem}", "values keep their underscores"


def test_pictures_may_stand_between_flags():
    assert parse_arguments(["a.png", "--seed", "1", "b.png", "--quiet", "c.png"]).inputs == ["a.png", "b.png", "c.png"]


def test_after_two_dashes_come_pictures_only():
    args = parse_arguments(["a.png", "--seed", "1", "--", "-b_c.png", "--quiet", "--"])
    assert (args.inputs, args.seed, args.quiet) == (["a.png", "-b_c.png", "--quiet", "--"], 1, False)
    assert parse_arguments(["--", "-b.png"], {"seed": 7}).inputs == ["-b.png"]


def test_a_contradicted_flag_of_the_release_is_told():
    notes = parse_arguments(["--in-channels", "3"]).notes
    assert "--in-channels 3 is ignored: for this network it is always 6" in notes


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("--size 0x100", "'0x100' must be WIDTHxHEIGHT, both at least 1, like 3840x2160"),
        ("--size 100", "must be WIDTHxHEIGHT"),
        ("--width 0", "argument --width: 0 must be an integer of at least 1"),
        ("--width 100 --infer_sr_scale 2", "--infer-sr-scale and --width both set the size of the output"),
        ("--long-side 100 --height 50", "--height and --long-side both set the size"),
        ("--infer_sr_scale 0", "scale 0 must be a number of at least 1"),
        ("--infer_sr_scale nan", "scale nan must be a number of at least 1"),
        ("--infer_sr_scale inf", "scale inf must be a number of at least 1"),
        ("--infer_sr_scale 1e308", "scale 1e308 must be a number of at least 1 and at most 1e+06"),
        ("--infer_sr_scale 0.5", "to make a picture smaller, use an image editor"),
        ("--infer_sr_scale four", "'four' is not a number"),
        ("--block_batch 0", "0 must be an integer of at least 1"),
        ("--num-steps 2.5", "2.5 must be an integer"),
        ("--num-steps 1000000000", "1000000000 must be an integer of at most 10000"),
        ("--memory 0", "write it like 8GiB"),
        ("--memory 0.3", "argument --memory: '0.3' is not an amount of memory: write it like 8GiB"),
        ("--seed -1", "seed -1 must be an integer between 0 and 2**64 - 1"),
        ("--seed 18446744073709551616", "must be an integer between 0 and 2**64 - 1"),
        ("--strength 1.5", "1.5 must lie between 0 and 1"),
        ("--detail -0.5", "-0.5 must lie between 0 and 5"),
        ("--grid-shift 2.5", "2.5 must be an integer of at least 0"),
        ("--sigma-max 0", "0 must be a number above 0"),
        ("--sigma-max 1 --sigma-min 2", "--sigma-min 2: must be below --sigma-max 1"),
        ("--quality 101", "101 must be an integer of at most 100"),
        ("-o a.bmp", "must be a name that ends in one of .png"),
        ("-o .png", "must be a name that ends in one of .png"),
        ("-o tests", "-o tests: is a folder, and -o names the one output file: use --out-dir for a folder"),
        ("--out-dir=", "--out-dir: the name is empty"),
        ("--output=", "--output: the name is empty"),
        ("--from-picture=", "--from-picture: the name is empty"),
        ("-o a.png --out-dir b", "--output and --out-dir exclude one another"),
        ("-o a.png --name {stem}", "-o and --name exclude one another"),
        ("-o a.png --format png", "--output and --format exclude one another"),
        ("--skip-existing --overwrite", "exclude one another"),
        ("--quiet --json", "exclude one another"),
        ("--name {stem.__class__}", "no field {stem.__class__} is known here"),
        ("--name x.png", "has a suffix"),
        ("--name {stem:>9999999999}", "a format may not be wider than 999"),
        ("--input-type cli a.png", "--input-type cli asks for the pictures"),
        ("--input-type txt --input-path list", "the name of a list ends in .txt"),
        ("--input-type datapath_dir", "name the data with --input-path"),
        ("--estimate", "--estimate: name the pictures"),
        ("--inference_type fast", "invalid choice: 'fast'"),
        ("--scale 4", "unrecognized arguments: --scale"),
    ],
)
def test_wrong_use_has_its_sentence_and_exit_code_2(command, sentence, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        parse_arguments(command.split())
    assert end.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "count"), [("8GiB", 8 << 30), ("500m", 500 << 20), ("1.5 GB", 3 << 29), ("1073741824", 1 << 30)]
)
def test_memory_has_units(text, count):
    assert parse_arguments([f"--memory={text}"]).memory == count


def test_settings_of_a_picture_are_checked_like_flags_and_overridden_by_them(capsys):
    stored = {"seed": 7, "sampler": "euler", "num_steps": 3, "init_noise": False, "scale": 2.5, "network": "../evil"}
    args = parse_arguments(["--seed", "9"], stored)
    assert (args.seed, args.sampler, args.num_steps, args.init_noise) == (9, "euler", 3, False)
    assert args.target == Target(scale=2.5)
    assert args.network is None, "nothing but REPEATED is taken from a file"
    assert parse_arguments(["--width", "80"], stored).target == Target(width=80)
    assert parse_arguments([], {"size": [30, 20]}).target == Target(width=30, height=20)
    stored = {"inference_type": "ar", "block_batch": 4}
    assert parse_arguments([], stored).notes == [], "what is stored with every picture is nothing to be told"
    assert parse_arguments([], stored | {"inference_type": "ar2"}).block_batch == 4
    for wrong in ({"seed": "1 --overwrite"}, {"sampler": "rm"}, {"size": [0, 5]}, {"scale": 0.1}, {"strength": 3}):
        with pytest.raises(SystemExit):
            parse_arguments([], wrong)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse_arguments([], {"seed": "1\x1b[2J"})
    assert "\x1b" not in capsys.readouterr().err, "a terminal does not obey files"


def test_names_known_without_torch_are_those_of_the_modules():
    from sat_sr.diffusion.samplers import SAMPLERS
    from sat_sr.inference.choices import KERNELS as KERNEL_NAMES
    from sat_sr.model.attention_kernels import KERNELS
    from sat_sr.sampling import SAMPLER_NAMES

    assert tuple(SAMPLERS) == SAMPLER_NAMES
    assert tuple(KERNELS) == KERNEL_NAMES


def test_help_and_errors_come_before_torch():
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from sat_sr.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'sat', 'PIL', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    for arguments_, expected in ((["--help"], 0), (["--size", "0x1"], 2)):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments_], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == expected, result.stderr
        assert "AssertionError" not in result.stderr


def test_the_neighbours_keys_are_not_dropped_and_it_is_told_what_the_flag_did():
    notes = parse_arguments(["--no_concat", "--nogate"]).notes
    told = "it drops the neighbours' keys in the release, for debugging; here they always count"
    assert f"--no-concat is ignored: {told}" in notes
    assert "accepted for compatibility, without effect: --nogate" in notes


@pytest.mark.parametrize("program", ["generate_sr_big.py", "train_text2image_sr.py"])
def test_help_breaks_no_name_of_a_flag(program):
    run = subprocess.run([sys.executable, ROOT / program, "--help"], capture_output=True, text=True, check=True)
    assert "max-sequence-length" in run.stdout and not re.search(r"\w-\n", run.stdout)


def test_help_is_grouped_and_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = make_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    for group in ("pictures:", "size of the output", "network:", "sampling", "memory:", "output:", "messages:"):
        assert f"\n{group}" in text
    for action in make_parser()._actions:
        assert action.help is argparse.SUPPRESS or not action.option_strings or action.option_strings[-1] in text
    for name in (*SETTLED, *arguments.ARCHITECTURE):
        assert name.replace("_", "-") in text.replace("\n  ", " ").replace("- ", "-")
