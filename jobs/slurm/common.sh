# shellcheck shell=bash
# What the batch scripts share. They source it from the folder in which sbatch was called, or from RINGTMP_HOME.
#
# Set what you need to before you call sbatch, such as   PYTHON=.venv-site/bin/python sbatch jobs/slurm/train.sbatch
#   PYTHON           .venv/bin/python, with the wheel of MPICH, if not said; .venv-site/bin/python: the site's own MPI
#   LAUNCH           how ranks are started, without -n
#   SLURM_MPI_TYPE   what srun and the MPI have in common: pmi2 (MPICH and its kin) if not said; Open MPI: pmix
#   LOGS             folder for a log of each rank, JOB.ranks if not said; LOGS= for none
#   NUMBA_CACHE_DIR  for compiled kernels; if not said, on a disk of the node (see rank.sh)
set -u
RINGTMP_HOME=${RINGTMP_HOME:-$PWD}
PYTHON=${PYTHON:-$RINGTMP_HOME/.venv/bin/python}
BESIDE=$(dirname "$PYTHON")/mpirun
export MPIRUN=${MPIRUN:-$([ -x "$BESIDE" ] && echo "$BESIDE" || echo mpirun)}
RANK=$RINGTMP_HOME/jobs/slurm/rank.sh
THREADS=${SLURM_CPUS_PER_TASK:-1}

# Of the run folder and the logs. It stays when the job is queued again.
NAME=$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
export LOGS=${LOGS-$NAME.ranks}

# run STOP COMMAND...: the command's exit status. STOP is called when the job has been told that its end is near.
run() {
  local stop=$1 again=1 status=0
  "${@:2}" &
  job=$!
  trap 'again=1; $stop' USR1 TERM INT
  while [ "$again" ]; do # a signal ends a wait early
    again=
    wait "$job"
    status=$?
  done
  return $status
}

# train MODULE FLAGS...: on all ranks, once.
train() {
  LAUNCH=${LAUNCH:-srun --mpi=${SLURM_MPI_TYPE:-pmi2} --kill-on-bad-exit=1 --cpus-per-task=$THREADS --cpu-bind=cores}
  # shellcheck disable=SC2086 # LAUNCH is several words
  run stop_ranks $LAUNCH "$RANK" "$PYTHON" -m "$1" --threads "$THREADS" "${@:2}"
}

# The ranks end after a checkpoint.
stop_ranks() {
  case $LAUNCH in
  *srun*) scancel --signal=TERM "$SLURM_JOB_ID" ;; # sent to srun itself it would have the ranks killed at once
  *) kill -TERM "$job" ;;
  esac
}

# supervise MODULE FLAGS...: on all ranks, again whenever one is lost. A job that has to stop queues itself again.
supervise() {
  export SLURM_OVERLAP=1 # processes that stand by may be on the CPUs of those that work
  run stop_supervisor "$PYTHON" -m ringtmp supervise -n "$SLURM_NTASKS" --mpirun "${LAUNCH:-$MPIRUN}" -- \
    "$RANK" "$PYTHON" -m "$1" --threads "$THREADS" --name "$NAME" "${@:2}"
  local status=$?
  if [ $status -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return $status
}

stop_supervisor() {
  kill -USR1 "$job"
}
