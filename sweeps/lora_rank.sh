#!/usr/bin/env bash
# How high a rank does the data need? Five ranks, each with two seeds: neighbouring ranks differ by less than seeds may.
set -euo pipefail
python -m dpo_lab --multirun study=lora_rank seed=0,1 sweep.name=lora_rank "$@"
