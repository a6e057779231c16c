#!/bin/sh
# The install steps of the image, for its Dockerfile and for the test that runs them without Docker; from the root of the
# repository. Libraries are large and change seldom, degrain is small and changes often: hence a layer for each.
#
#   install.sh wheel FOLDER            degrain as a wheel, built in FOLDER, and what it needs as a requirements.txt
#   install.sh libraries VENV FOLDER   a virtual environment with what that file asks for, as deploy/constraints.txt pins
#                                      it; torch comes from TORCH_INDEX, where that is set
#   install.sh degrain VENV FOLDER     the wheel in FOLDER, into that environment; needs no network
#
# PYTHON is one that has pip, where python3 has none: that environment gets none.
set -eu
constraints=deploy/constraints.txt
step=$1
target=$2

into_target() {
    "${PYTHON:-python3}" -m pip --python "$target" install --no-input --disable-pip-version-check "$@"
}

case $step in
wheel)
    python3 -m venv "$target/builder"
    "$target/builder/bin/pip" install --disable-pip-version-check -c "$constraints" hatchling
    # Without isolation: an isolated build would take whatever hatchling is newest.
    "$target/builder/bin/pip" wheel --disable-pip-version-check --no-build-isolation --no-deps -w "$target" .
    rm -r "$target/builder"
    # `evaluate`, because the flow `retrain` scores weights before it promotes them; and the stores of all clouds.
    python3 - >"$target/requirements.txt" <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [project["optional-dependencies"][name] for name in ("evaluate", "gs", "az")]
print(*project["dependencies"], *sum(extras, []), sep="\n")
PYTHON
    ;;
libraries)
    python3 -m venv --without-pip "$target"
    if [ -n "${TORCH_INDEX:-}" ]; then
        # From that index torch alone: what else lies there is not what the constraints pin.
        into_target --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' "$constraints")"
    fi
    into_target -c "$constraints" -r "$3/requirements.txt"
    ;;
degrain)
    into_target --no-deps --no-index "$3"/degrain-*.whl
    ;;
*)
    echo "install.sh: $step is no step: expected wheel, libraries or degrain" >&2
    exit 2
    ;;
esac
