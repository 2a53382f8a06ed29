#!/bin/sh
# Run the adapters' tests at the lowest and the newest supported framework versions, each in a venv of its own that
# sees the packages of the python it is called with (torch is not installed again).
#
#     integrations/test_versions.sh [FOLDER]      FOLDER keeps the venvs between runs (default: a temporary one)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
folder=${1:-$(mktemp -d)}
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
export HF_HUB_OFFLINE=1
failed=""

run() { # name, package folder, requirements ...
    name=$1 package=$2
    shift 2
    venv="$folder/$name"
    if [ ! -f "$venv/installed" ]; then
        "$python" -m venv "$venv"
        echo "$packages" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/outer.pth"
        "$venv/bin/python" -m pip install -q --disable-pip-version-check "$@"
        touch "$venv/installed"
    fi
    echo "== $name: $("$venv/bin/python" -m pip list --format=freeze 2>/dev/null |
        grep -iE '^(llama-index-core|langchain-core|langchain-classic|langchain-tests|langgraph|haystack-ai)==' | tr '\n' ' ')"
    (cd "$here/$package" && "$venv/bin/python" -m pytest -q -p no:cacheprovider) || failed="$failed $name"
}

run llama-index-lowest llama-index-postprocessor-mmrh-rerank "llama-index-core==0.13.0"
run llama-index-newest llama-index-postprocessor-mmrh-rerank "llama-index-core<0.15" --upgrade
run langchain-lowest langchain-mmrh "langchain-core==1.0.0" "langchain-classic==1.0.0" "langchain-tests==1.0.0" "langgraph==1.0.1"
run langchain-newest langchain-mmrh "langchain-core<2" "langchain-classic<2" "langchain-tests<2" "langgraph<2" --upgrade
run haystack-lowest mmrh-haystack "haystack-ai==2.10.0"
run haystack-newest mmrh-haystack "haystack-ai<4" --upgrade

if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
