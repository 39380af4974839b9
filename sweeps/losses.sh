#!/usr/bin/env bash
# Which loss suits the data? Eight runs, at the beta that each loss ships with.
set -euo pipefail
python -m dpo_lab --multirun study=losses sweep.name=losses "$@"
