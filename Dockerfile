# The server. For machines without a GPU as it is; for CUDA 12.8:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t mmrh .
# It needs a file of API keys, since others reach it:
#   docker run -p 8000:8000 -v mmrh:/var/lib/mmrh -v ./keys.txt:/run/secrets/mmrh_keys:ro mmrh
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve,otel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/mmrh && /opt/mmrh/bin/pip install --index-url "${TORCH_INDEX}" "torch>=2.6"
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY mmrh_retriever mmrh_retriever
RUN /opt/mmrh/bin/pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/mmrh /opt/mmrh
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/mmrh mmrh
ENV PATH=/opt/mmrh/bin:$PATH HF_HOME=/var/lib/mmrh/models PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/mmrh
VOLUME /var/lib/mmrh
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["mmrh", "serve", "--host", "0.0.0.0", "--files", "/var/lib/mmrh/files", "--store", "/var/lib/mmrh/pages"]
CMD ["--api-key-file", "/run/secrets/mmrh_keys"]
