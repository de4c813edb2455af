"""One text that a user types -> the shards it names."""

from __future__ import annotations

import pytest

from sat_sr.data.shards import expand_shards


@pytest.fixture
def folders(tmp_path):
    """a/ with 2 shards, one of them in a subfolder, and a stray file; b/ with 1; empty/ with none."""
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("a/0001.tar", "a/deep/0002.tar", "a/notes.txt", "b/0000.tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_releases_form_repeats_a_folder(folders):
    found = expand_shards(f";{folders}/b*3, {folders}/a")
    assert found == [f"{folders}/b/0000.tar"] * 3 + [f"{folders}/a/0001.tar", f"{folders}/a/deep/0002.tar"]


def test_paths_globs_braces_and_folders_in_one_list(folders):
    spec = f"{folders}/b/0000.tar,{folders}/a/00*.tar,{folders}/{{a/0001,b/0000}}.tar,{folders}/a"
    assert [path.removeprefix(f"{folders}/") for path in expand_shards(spec)] == [
        *("b/0000.tar", "a/0001.tar"),
        *("a/0001.tar", "b/0000.tar"),
        *("a/0001.tar", "a/deep/0002.tar"),
    ]


def test_folders_that_a_glob_matches_are_searched_through_and_a_tar_is_taken_once(folders):
    tars = [f"{folders}/{name}" for name in ("a/0001.tar", "a/deep/0002.tar", "b/0000.tar")]
    assert expand_shards(f"{folders}/*") == tars, "no matter that one folder has none"
    (folders / "linked").symlink_to(folders / "a")
    assert sorted(expand_shards(f"{folders}/**")) == tars, "nor notes, nor a second name"
    assert sorted(expand_shards(f"{folders}/**/*.tar")) == tars
    with pytest.raises(ValueError, match="nothing matches that is a shard or holds some"):
        expand_shards(f"{folders}/empt*")


def test_linked_folders_are_searched_through_once_and_loops_end(folders):
    (folders / "a" / "deep" / "up").symlink_to(folders / "a")
    (folders / "a" / "0_twice").symlink_to(folders / "a" / "deep")
    (folders / "a" / "elsewhere").symlink_to(folders / "b")
    (folders / "a" / "z_above").symlink_to(folders)
    (folders / "a" / "gone").symlink_to(folders / "nowhere")
    assert [path.removeprefix(f"{folders}/a/") for path in expand_shards(f";{folders}/a")] == [
        *("0001.tar", "deep/0002.tar", "elsewhere/0000.tar")
    ]
    (folders / "link").symlink_to(folders / "b")
    assert expand_shards(f";{folders}/link") == [f"{folders}/link/0000.tar"]


def test_what_make_shards_has_not_finished_is_left_out(folders):
    (folders / "b" / ".b.unfinished-x1").mkdir()
    (folders / "b" / ".b.unfinished-x1" / "shard-000000.tar").touch()
    assert expand_shards(f";{folders}/b") == [f"{folders}/b/0000.tar"]


def test_several_texts_name_the_shards_of_all(folders):
    assert expand_shards([f";{folders}/b", f"{folders}/a/*.tar"]) == [f"{folders}/b/0000.tar", f"{folders}/a/0001.tar"]


def test_urls_are_passed_on_with_their_braces_expanded():
    assert expand_shards("https://host/x-{00..02}.tar,gs://bucket/y.tar") == [
        *("https://host/x-00.tar", "https://host/x-01.tar", "https://host/x-02.tar"),
        "gs://bucket/y.tar",
    ]


def test_a_pipe_keeps_its_commas():
    assert expand_shards("pipe:cut -d, -f1 x.tar::pipe:cat {a,b}.tar") == [
        *("pipe:cut -d, -f1 x.tar", "pipe:cat a.tar", "pipe:cat b.tar")
    ]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("{root}/none.tar", "none.tar"),
        ("{root}/b/0000.tar,{root}/*.zip", r"\*.zip"),
        ("{root}/b/{{0000..0002}}.tar", "0001.tar"),
        ("{root}/b/{{0000.tar", "braces"),
        (";{root}/b,{root}/gone", "gone"),
        (";{root}/b/0000.tar", "without the leading ';'"),
        (";{root}/empty", "empty"),
        (";{root}/b*0", "whole number"),
        (";{root}/b*three", "whole number"),
        (";", "names no shards"),
        ("", "names no shards"),
        ("s3://bucket/a.tar", "aws s3 cp s3://bucket/a.tar"),
        ("gopher://host/a.tar", "gopher"),
    ],
)
def test_what_matches_nothing_is_named(folders, spec, named):
    with pytest.raises(ValueError, match=named):
        expand_shards(spec.format(root=folders))
