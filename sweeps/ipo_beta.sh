#!/usr/bin/env bash
# Which beta does IPO need on this data? Five runs, from a target margin of 50 nats a token down to half a nat.
set -euo pipefail
python -m dpo_lab --multirun study=ipo_beta sweeper.points=5 sweep.name=ipo_beta "$@"
