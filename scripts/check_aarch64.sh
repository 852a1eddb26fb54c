#!/usr/bin/env bash
# The compiled kernels built for aarch64 with the flags of setup.py, and checked under user-mode emulation.
#
# Needs Debian's g++-aarch64-linux-gnu and qemu-user. Exit code 3: one of them is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
compiler=aarch64-linux-gnu-g++ emulator=qemu-aarch64
for tool in "$compiler" "$emulator"; do
    command -v "$tool" > /dev/null && continue
    echo "aarch64: $tool is missing; 'apt-get install g++-aarch64-linux-gnu qemu-user' brings it"
    exit 3
done
mapfile -t flags < <(python3 - <<'PY'
import ast
for statement in ast.parse(open("setup.py").read()).body:
    if isinstance(statement, ast.Assign) and statement.targets[0].id == "FLAGS":
        print(*ast.literal_eval(statement.value), sep="\n")
PY
)
[ "${#flags[@]}" -gt 0 ] || { echo "aarch64: setup.py has no list FLAGS"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$compiler" "${flags[@]}" -Wall -Wextra -Werror -fPIC -shared -Isrc/parhelion/native \
    src/parhelion/native/*.cpp src/parhelion/ops/*/*.cpp -o "$work/kernels_baseline.so"
"$compiler" -std=c++17 -fopenmp -Isrc -Isrc/parhelion/native tests/native/self_check.cpp -o "$work/self_check" -ldl
cd "$work"
"$emulator" -L /usr/aarch64-linux-gnu ./self_check ./kernels_baseline.so | sed 's/^/aarch64: /'
