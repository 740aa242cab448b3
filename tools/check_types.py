"""Checks the types as users see them: the examples of use against the installed wheel, without the sources."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "tests" / "clients" / "typing_examples.py"


def main() -> None:
    """Exits with the type checker's words if it has any."""
    (wheel,) = Path(sys.argv[1]).glob("forebay-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        (site,) = environment.glob("lib/python3*/site-packages")
        shutil.unpack_archive(wheel.resolve(), site, "zip")
        # What the wheel needs comes from here; the editable install of the sources does not: a .pth file leads to
        # folders, and not to the .pth files in them.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        shutil.copy(EXAMPLES, folder)
        checked = subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", "--verbose"),
                *("--python-executable", str(environment / "bin" / "python"), EXAMPLES.name),
            ],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key != "MYPYPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        if checked.returncode:
            sys.exit(checked.stdout)
        seen = str(site / "forebay_client" / "_client.py")
        if seen not in checked.stderr:  # the positive control
            sys.exit(f"the type checker did not look at {seen}")
    print(f"{wheel.name}: the types hold")


if __name__ == "__main__":
    main()
