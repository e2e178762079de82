#!/bin/bash
# A run on machines that Slurm lends, as one Ray cluster that ends with the run:
#
#   sbatch cluster/slurm.sh jobs/recipes/math500-llama1b-dvts512.yaml policies.0.replicas=6
#
# from the checkout, which lies on storage that all machines share, as does the virtual
# environment. What stands behind the script goes to `branchwise run`. Run folders go to $RUNS, or
# to runs/ in the checkout. When time is up, the same command goes on where it was cut off.
#
#SBATCH --job-name=branchwise
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --output=branchwise-%j.log

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
if [ -e .venv/bin/activate ]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
runs=${RUNS:-$PWD/runs}
mkdir -p "$runs"
ended=$runs/.slurm-$SLURM_JOB_ID

# Other users of the machines may not use the cluster: every process shows a token, which lies in
# the home folder. If that is not shared, set RAY_AUTH_TOKEN_PATH to a file that is.
export RAY_AUTH_MODE=token
[ -n "${RAY_AUTH_TOKEN_PATH:-}" ] || ray get-auth-token --generate > /dev/null

# A lost machine is found after 15 s instead of 64 s (docs/reliability.md).
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000
# Machines of a large cluster do not start Ray within the 30 s that are waited otherwise.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}

# The first machine becomes the head and runs the command; when that has ended, Ray is stopped on
# all of them. symmetric-run ends with 0 when Ray did not start, so the run says itself how it
# ended.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 ray symmetric-run \
    --address "$head:${RAY_PORT:-6379}" \
    --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" \
    -- \
    bash -c 'code=0; python -m jobs run "${@:2}" --address auto || code=$?; echo $code > "$1"' \
    run "$ended" "$@" "runs_folder=$runs" || true

[ -e "$ended" ] || { echo "error: the run did not start: see above" >&2; exit 1; }
code=$(cat "$ended")
rm "$ended"
exit "$code"
