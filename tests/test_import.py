import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_clone_of_that_name_does_not_shadow_the_package(tmp_path):
    """From the folder that holds the clone `import ddpm_jax` is the package, as it is from inside the clone."""
    (tmp_path / "ddpm_jax").symlink_to(ROOT)
    lines = "import ddpm_jax; from ddpm_jax.spelling import distance; from ddpm_jax import files; print(ddpm_jax.load.__doc__)"
    found = [
        subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True) for folder in (tmp_path, ROOT)
    ]
    assert all(run.returncode == 0 for run in found), found[0].stderr
    assert found[0].stdout == found[1].stdout != ""
