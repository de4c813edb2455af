"""A crash between any two steps of publishing a checkpoint leaves `latest` on a complete one."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from sat_sr.checkpoint.run_folder import find_latest
from sat_sr.config import InfDiTConfig
from sat_sr.training import checkpoint_names, run_claim, state
from sat_sr.training.logs import RunLog
from sat_sr.training.run_claim import lock_folder

FILES = ("mp_rank_00_model_states.pt", "ema.safetensors", "training.json", "data_rank_0.json")


class Crash(BaseException):
    """As final as a power cut: nothing in the project catches it."""


def write_checkpoint(folder, step, keep_last=2):
    """What state.save does after the engine has written its files, with files that name their step."""
    checkpoint_names.remove_temporary(folder)
    temporary = folder / f"tmp-{step}"
    temporary.mkdir()
    for name in FILES:
        (temporary / name).write_text(json.dumps({"step": step}))
    checkpoint_names.publish(folder, temporary, step)
    checkpoint_names.remove_old(folder, keep_last)


def latest_step(folder):
    """The step of the checkpoint that `latest` names, which must be complete."""
    checkpoint = find_latest(folder)
    if checkpoint is None:
        return 0
    assert {json.loads((checkpoint / name).read_text())["step"] for name in FILES} == {int(checkpoint.name)}
    return int(checkpoint.name)


def crash_before(monkeypatch, operation):
    """The operation number `operation` (0, 1, …) on the file system, and all after it, do not happen."""
    count = iter(range(1_000_000))

    def wrap(function):
        def wrapped(*arguments, **options):
            if next(count) >= operation:
                raise Crash
            return function(*arguments, **options)

        return wrapped

    for module, name in (
        (os, "rename"),
        (os, "replace"),
        (os, "fsync"),
        (os, "unlink"),
        (os, "rmdir"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))


def test_a_crash_at_any_moment_leaves_a_complete_latest_and_the_next_start_goes_on(tmp_path, monkeypatch):
    outcomes = []
    for operation in range(40):
        folder = tmp_path / str(operation)
        folder.mkdir()
        for step in (10, 20):
            write_checkpoint(folder, step)
        with monkeypatch.context() as patch:
            crash_before(patch, operation)
            try:
                write_checkpoint(folder, 30)
                crashed = False
            except Crash:
                crashed = True
        outcomes.append(latest_step(folder))
        assert outcomes[-1] == 30 or (crashed and outcomes[-1] == 20)
        for step in (30, 40):  # resumed at 20 it comes to 30 again
            write_checkpoint(folder, step)
            assert latest_step(folder) == step
        assert sorted(path.name for path in folder.iterdir()) == ["30", "40", "latest"]
        if not crashed:
            break
    assert not crashed and outcomes == sorted(outcomes) and set(outcomes) == {20, 30} and len(outcomes) > 8


@pytest.mark.parametrize("keep_last, left", [(0, ["1", "2", "3", "4"]), (1, ["4"]), (3, ["2", "3", "4"])])
def test_the_last_checkpoints_are_kept(tmp_path, keep_last, left):
    for step in range(1, 5):
        write_checkpoint(tmp_path, step, keep_last)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == left


def test_the_one_that_latest_names_is_kept_though_a_newer_is_there(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, keep_last=0)
    (tmp_path / "latest").write_text("1")  # the user went back
    checkpoint_names.remove_old(tmp_path, 1)
    assert latest_step(tmp_path) == 1


def test_checkpoints_of_a_run_that_was_taken_back_are_not_counted(tmp_path):
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step, keep_last=0)
    (tmp_path / "latest").write_text("10")  # the user went back
    for step in (12, 14):
        write_checkpoint(tmp_path, step, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["12", "14", "20", "30"]


def test_an_old_checkpoint_that_cannot_be_removed_is_told_of_once_and_tried_again(tmp_path, monkeypatch, capsys):
    """As on NFS, where a file in it is open; then that is closed."""
    rmtree = shutil.rmtree

    def busy(path, *arguments, **options):
        if "removed-1" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        return rmtree(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for step in (1, 2, 3, 4):
            write_checkpoint(tmp_path, step, keep_last=1)
            assert latest_step(tmp_path) == step
        write_checkpoint(tmp_path, 1, keep_last=0)  # taken back by hand, the run comes to the same step
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4", "latest", "tmp-removed-1"]
    said = capsys.readouterr().err.splitlines()
    wanted = (
        "tmp-removed-1, an old checkpoint, cannot be removed (Directory not empty): tried again with each checkpoint"
    )
    assert len(said) == 1 and wanted in said[0]
    write_checkpoint(tmp_path, 5, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "latest"]


def test_without_latest_the_newest_checkpoint_is_taken(tmp_path):
    assert find_latest(tmp_path / "nowhere") is None
    for step in (9, 10):
        write_checkpoint(tmp_path, step, keep_last=0)
    (tmp_path / "latest").unlink()
    assert latest_step(tmp_path) == 10


def test_a_start_that_saved_nothing_has_not_claimed_the_folder(tmp_path):
    run_claim.claim_folder(tmp_path, InfDiTConfig.preset("official")).close()
    run_claim.claim_folder(tmp_path, InfDiTConfig.preset("mini")).close()
    assert InfDiTConfig.from_json((tmp_path / "config.json").read_text()) == InfDiTConfig.preset("mini")
    write_checkpoint(tmp_path, 1)
    with pytest.raises(ValueError, match=r"num_layers 4 \(here 28\).*hidden_size 192 \(here 1280\)"):
        run_claim.claim_folder(tmp_path, InfDiTConfig.preset("official"))


def test_a_folder_is_of_one_process_until_that_ends(tmp_path):
    code = (
        "import sys, pathlib; from sat_sr.training.run_claim import lock_folder; "
        "lock = lock_folder(pathlib.Path(sys.argv[1])); print('has it', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(
            ValueError, match=rf"is in use by process {other.pid} on .*: wait for it.*delete {tmp_path}/lock$"
        ):
            lock_folder(tmp_path)
        other.kill()
    lock_folder(tmp_path).close()


def test_damaged_lines_of_the_log_are_left_out_and_the_rest_kept(tmp_path, capsys):
    good = '{"kind": "train", "step": 1, "loss": 2.0}\n'
    later = '{"kind": "train", "step": 9, "loss": 1.0}\n'
    (tmp_path / "log.jsonl").write_bytes(good.encode() + b"\0" * 200 + b"\n[1]\n" + later.encode() + b'{"kind": "tr')
    RunLog(tmp_path, resume_step=5, enabled=True).close()
    assert (tmp_path / "log.jsonl").read_text() == good
    said = capsys.readouterr()
    assert "log.jsonl: 3 damaged line(s) left out" in said.err
    assert "log.jsonl: 1 record(s) after step 5 are dropped: those steps come again" in said.out


def test_what_is_left_over_of_the_run_is_removed_and_nothing_of_others(tmp_path):
    for name in ("tmp-5", "tmp-removed-4"):
        (tmp_path / name).mkdir()
    for name in ("tmp-notes", ".latest.7.tmp", ".mine.safetensors.7.tmp"):
        (tmp_path / name).touch()
    checkpoint_names.remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.safetensors.7.tmp", "tmp-notes"]


def test_a_broken_latest_is_named_with_what_there_is(tmp_path):
    write_checkpoint(tmp_path, 7)
    for text in ("8", "../7", ""):
        (tmp_path / "latest").write_text(text)
        with pytest.raises(ValueError, match=r"not a checkpoint in .* \(there are: 7\)"):
            find_latest(tmp_path)


def test_a_rank_that_sees_another_folder_than_rank_0_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_claim, "NFS_SECONDS", 0)
    run_claim.claim_folder(tmp_path / "run", InfDiTConfig.preset("mini"))
    run_claim.require_shared(tmp_path / "run")
    with pytest.raises(ValueError, match=r"elsewhere/run on .* put --save on a file system that all nodes share"):
        run_claim.require_shared(tmp_path / "elsewhere" / "run")


def test_a_folder_that_a_node_sees_late_is_waited_for(tmp_path):
    """NFS: what was not there a moment ago is remembered as not there."""
    run = tmp_path / "run"
    late = threading.Timer(0.5, run_claim.claim_folder, (run, InfDiTConfig.preset("mini")))
    late.start()
    run_claim.require_shared(run)
    assert (run / "config.json").exists()
    late.join()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--save .*/file/run: no folder can be made there \(Not a directory\)"):
        run_claim.claim_folder(tmp_path / "file" / "run", InfDiTConfig.preset("mini"))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"step": 1', b"\xff"])
def test_a_damaged_or_missing_file_of_a_checkpoint_is_named_with_the_way_out(tmp_path, content):
    for name, read in (
        ("training.json", state.read_training),
        ("data_rank_1.json", lambda checkpoint: state.data_positions(checkpoint, 2)),
    ):
        checkpoint = tmp_path / name / "7"
        checkpoint.mkdir(parents=True)
        (checkpoint / "data_rank_0.json").write_text('{"batches": 0, "stream": {}}')
        if content is not None:
            (checkpoint / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError) as error:
            read(checkpoint)
        assert str(error.value).startswith(f"{checkpoint / name} is damaged or missing (")
        assert str(error.value).endswith(f"write the name of an earlier checkpoint into `latest` of {tmp_path / name}")


def test_a_position_that_a_stream_cannot_take_is_named(tmp_path):
    checkpoint = tmp_path / "7"
    checkpoint.mkdir()
    (checkpoint / "data_rank_0.json").write_text('{"batches": 0, "stream": {"turn": 0, "addresses": [], "counts": []}}')
    with pytest.raises(ValueError, match=r"data_rank_0.json is damaged .*addresses, counts, next_worker"):
        state.data_positions(checkpoint, 1)


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"layers": 3}'])
def test_a_damaged_config_of_a_run_is_named(tmp_path, content):
    write_checkpoint(tmp_path, 1)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is damaged \(.+\): remove it, and start with the model that"):
        run_claim.claim_folder(tmp_path, InfDiTConfig.preset("mini"))
