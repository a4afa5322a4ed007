#!/usr/bin/env bash
# Builds the docs as a site (folder site/) and checks every link in them; a warning fails it.
#   --serve  shows them at http://127.0.0.1:8000 instead, and again at every change
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
bin="${BLOCKZO_VENV:-.venv}/bin"
# a word of the theme's makers about its successor, at every run
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = --serve ]; then exec "$bin/mkdocs" serve --strict; fi
exec "$bin/mkdocs" build --strict "$@"
