# The image of every machine: Ray, vLLM, all packages, and Branchwise where jobs expect it.
#
#   docker build -t REGISTRY/branchwise:0.1.0 .
#
# The code is in it because a run on Kubernetes has no working directory to bring along. A job that
# is submitted with one uses that, which comes first: the image need not be built for each change.
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu
FROM ${RAY_IMAGE}

WORKDIR /home/ray/branchwise

# What takes long and seldom changes: without the code, only packages are installed. vLLM brings
# CUDA, so the machine needs a driver and nothing else; RAY_IMAGE=rayproject/ray:2.60.0-py311-cpu
# does as well.
COPY --chown=ray:users pyproject.toml constraints.txt README.md ./
ARG EXTRAS=[vllm]
RUN pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS}" \
    && pip uninstall --yes branchwise

COPY --chown=ray:users search search
COPY --chown=ray:users actors actors
COPY --chown=ray:users cluster cluster
COPY --chown=ray:users jobs jobs
COPY --chown=ray:users embedded embedded
RUN pip install --no-cache-dir --no-deps --editable .

# Clusters ask for a token unless they are told not to (docs/clusters.md).
ENV RAY_AUTH_MODE=token
