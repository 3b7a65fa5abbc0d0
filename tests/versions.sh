#!/usr/bin/env bash
# Runs the tests that touch Prefect with the oldest and with the newest Prefect that pyproject.toml allows, beside all else of .venv.
#
#   tests/versions.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
tests=(tests/server tests/tasks tests/flows tests/test_undocumented.py tests/test_prefect_yaml.py)
read -ra bounds <<< "$($python - <<'PYTHON'
import re
import tomllib
from pathlib import Path

needed = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
print(*(line for line in needed if re.match("(prefect|fastapi|sqlalchemy)[<>=]", line)))
PYTHON
)"
oldest="$(grep -oP '^prefect>=\K[\d.]+' <<< "${bounds[0]}")"

for wanted in "prefect==$oldest" "${bounds[0]}"; do
  folder=".venv/with-$(tr -dc 'a-z0-9.' <<< "$wanted")"
  rm -rf "$folder"
  $python -m venv --without-pip "$folder"
  packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  $python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$packages/others.pth"  # whose own `.pth` files are not read
  pip=($python -m pip --python "$folder/bin/python" install --quiet --disable-pip-version-check)
  "${pip[@]}" --upgrade "$wanted" "${bounds[@]:1}"
  "${pip[@]}" --no-deps --no-build-isolation --ignore-installed --editable .
  "$folder/bin/python" -c 'import prefect; print("Prefect", prefect.__version__)'
  OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -n 2 -m "not slow" "${tests[@]}" "$@"
done
