# edgekd with CUDA (x86-64): trains on a GPU, builds and runs TensorRT engines. The host needs NVIDIA's container toolkit.
FROM python:3.11-slim-bookworm

# PyTorch's own index, for the build that is wanted; by default that of pip.
ARG TORCH_INDEX=

WORKDIR /opt/edgekd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY edgekd ./edgekd
RUN PIP_EXTRA_INDEX_URL="$TORCH_INDEX" pip install --no-cache-dir '.[tensorrt]' -c constraints.txt \
 && useradd --create-home --uid 1000 edgekd

USER 1000
WORKDIR /work
ENTRYPOINT ["edgekd"]
CMD ["doctor"]
