#!/bin/bash
# rank.sh PYTHON FLAGS...: what each rank does on its own node before it becomes Python.

# Compiled kernels lie on a disk of the node, for all its ranks; the file system that all nodes share is spared.
if [ -z "${NUMBA_CACHE_DIR:-}" ]; then
  cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/ringtmp-numba-$UID
  mkdir -m 700 "$cache" 2>/dev/null
  if [ -O "$cache" ]; then # no code from a folder that somebody else has made
    export NUMBA_CACHE_DIR=$cache
  fi
fi

# What the rank says goes to the job's log and to a file of its own. tee lives as long as there is something to be said.
if [ -n "${LOGS:-}" ]; then
  mkdir -p "$LOGS"
  log=$LOGS/rank${PMI_RANK:-${OMPI_COMM_WORLD_RANK:-${SLURM_PROCID:-0}}}.log
  exec > >(trap '' TERM INT USR1 && exec setsid tee -a "$log") 2>&1
fi
exec "$@"
