#!/bin/sh
# Says of a Slurm job whether it is running (or waiting), a success or failed.

# For what the controller has forgotten; where there is no accounting the job counts as failed and is
# done again, which costs little: what it computed is in the cache.
accounted() {
  sacct --noheader --parsable2 --allocations --format=State --jobs="$1" 2>/dev/null
}

if state=$(squeue --noheader --states=all --format=%T --jobs="$1" 2>&1); then
  [ -n "$state" ] || state=$(accounted "$1")
else
  case $state in
    *"Invalid job id"*) state=$(accounted "$1") ;;
    *) state=PENDING ;; # no answer at the moment: ask again later
  esac
fi
case ${state%%[ +]*} in
  COMPLETED) echo success ;;
  PENDING | RUNNING | CONFIGURING | COMPLETING | SUSPENDED | REQUEUED | REQUEUE_HOLD | RESIZING | STAGE_OUT | SIGNALING | STOPPED)
    echo running ;;
  *) echo failed ;;
esac
