#!/bin/bash
# A Ray cluster for as long as a job of Slurm's runs. From the root of the checkout, in an environment
# and a home that all nodes see (make the first four values fit your machines):
#
#     sbatch harness/cluster/slurm.sh grids/full.yaml --gpus-per-trial 0.25
#
# What is missing when the job's time is over the same command trains in another job. Ray's ports ask
# for the token, but its traffic is not encrypted: a network whose users you trust.
#
# In containers, where Slurm has Pyxis: export CONTAINER, such as '--container-image=IMAGE
# --container-mounts=/shared --container-workdir=/shared/bn-order', for Ray and the run; this script
# itself stays outside, and needs a Python with Ray for the token. Without Ray, a process per GPU:
#
#     python -m harness.run grids/full.yaml --plan-only --results /shared/full
#     sbatch --array=1-8 --gpus=1 --wrap 'python -m harness.work /shared/full'
#
# Tried with Slurm 22.05 on two nodes without GPUs. Not tried: GPUs, containers, arrays.
#SBATCH --nodes=4
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive

export RAY_AUTH_MODE=token
(umask 077 && ray get-auth-token --generate > /dev/null)  # for its owner only

# On each node a step of the job holds Ray, until the job is over. The head is where this script runs,
# by the address from which it reaches another node of the job: a machine may have several networks,
# and gRPC does not find every name that the machine itself does.
other=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF "$SLURMD_NODENAME" | head -n 1)
host=$(python - "$other" 2> /dev/null << 'END'
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:  # nothing is sent
    way.connect((sys.argv[1] or "192.0.2.1", 9))
    print(way.getsockname()[0])
END
) || host=$(hostname -I | cut -d ' ' -f 1)  # a single node without a way out
address=$host:6379
read -ra container <<< "${CONTAINER-}"
step=(srun --overlap --cpus-per-task="$SLURM_CPUS_PER_TASK" "${container[@]}")
start=(ray start --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats --block)
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${start[@]}" --head --port=6379 \
    --node-ip-address="$host" &
head=$!
until timeout 5 bash -c ": < /dev/tcp/${address/:/\/}" 2> /dev/null; do
    if ! kill -0 "$head" 2> /dev/null || ((SECONDS > 120)); then
        echo "slurm.sh: no Ray at $address after $SECONDS s; what is printed above, and" \
            "/tmp/ray/session_latest/logs on $SLURMD_NODENAME, say why" >&2
        exit 2
    fi
    sleep 1
done
if ((SLURM_NNODES > 1)); then
    others=$((SLURM_NNODES - 1))
    "${step[@]}" --nodes=$others --ntasks=$others --exclude="$SLURMD_NODENAME" \
        "${start[@]}" --address="$address" &
fi
run=(python -m harness.run "$@" --address "$address" --wait-for-nodes "$SLURM_NNODES")
if ((${#container[@]})); then
    run=("${step[@]}" --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${run[@]}")
fi
"${run[@]}"
