# docker build -t hcnn . && docker run --rm -p 8888:8888 hcnn, then open the address that it prints.
# For a GPU: the NVIDIA container toolkit and `--gpus all`; the wheels of PyTorch bring CUDA.
FROM python:3.11-slim
# gcc and libc6-dev: on a GPU Triton compiles a little C at first use
RUN apt-get update && apt-get install -y --no-install-recommends make git gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader
USER reader
WORKDIR /home/reader/hcnn
COPY --chown=reader pyproject.toml requirements.lock setup.py README.md LICENSE Makefile ./
COPY --chown=reader hcnn hcnn
RUN make environment && rm -rf /home/reader/.cache
COPY --chown=reader . .
EXPOSE 8888
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
