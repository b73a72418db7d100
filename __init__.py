"""For a clone that is called ddpm_jax: from its parent folder, too, `import ddpm_jax` is the package inside.

Without this file Python would take the folder of the clone for an empty package of that name, also where ddpm_jax is installed.
"""

from pathlib import Path

_inside = Path(__file__).parent / "ddpm_jax"
__path__ = [str(_inside)]
exec(compile((_inside / "__init__.py").read_text(), _inside / "__init__.py", "exec"))
