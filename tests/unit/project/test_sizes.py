"""The check of sizes in `make lint` names what is too large, and nothing else."""

from sizes import too_large


def test_what_is_too_large_is_named(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * 401)
    (tmp_path / "full.py").write_text("x = 1\n" * 400)
    body = "        x = 1\n" * 80
    (tmp_path / "functions.py").write_text(f"class A:\n    def b(self):\n{body}\n    def c(self):\n{body[:-15]}\n")
    (tmp_path / "notes.txt").write_text("words\n" * 500)
    for folder, number in (("crowded", 21), ("filled", 20)):
        (tmp_path / folder).mkdir()
        for file in range(number):
            (tmp_path / folder / f"m{file}.py").write_text("")
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")]
    assert too_large(tmp_path, names) == {
        "long.py": "401 lines, 400 at most",
        "functions.py::A.b": "81 lines, 80 at most",
        "crowded": "21 files, 20 at most",
    }
