# Images `operator` and `trainer`, for docker (BuildKit), podman and buildah alike:
#
#   docker build --target operator -t llmtrain-operator .
#   docker build --target trainer  -t llmtrain-trainer  .
#
# BASE_IMAGE is any Debian-like image whose python3 is 3.11 and has the venv module; catatonit, the first process of a
# training pod, is installed if it is not there. Dependencies come from the locks in
# requirements/ with their hashes, before any source: a change of the source rebuilds only the last, thin layer.
# A private package mirror or CA needs no change here; all of these are optional:
#
#   --secret id=pip.conf,src=... --secret id=uv.toml,src=... --secret id=ca,src=<PEM bundle>
#
# The bundle is not mounted over the image's own: buildah removes what it has mounted over, and S3 clients need it.

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
RUN command -v catatonit > /dev/null \
 || { apt-get update -qq && apt-get install -qq --no-install-recommends catatonit && rm -rf /var/lib/apt/lists/*; }
# A name for the user, since libraries ask for it; bytecode, since nobody can write it later.
RUN echo 'llmtrain:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd \
 && echo 'llmtrain:x:65532:' >> /etc/group \
 && stdlib=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))') \
 && python3 -m compileall -q -x '/(test|tests|lib2to3|site-packages|dist-packages)/' "$stdlib"
ENV LANG=C.UTF-8 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt

FROM base AS operator-deps
COPY requirements/build.txt requirements/operator.txt /opt/
RUN --mount=type=cache,id=llmtrain-uv,target=/root/.cache/uv \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=secret,id=ca \
    [ ! -f /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca \
 && python3 -m venv /tmp/tools \
 && PIP_CERT=$SSL_CERT_FILE /tmp/tools/bin/pip install -q --no-cache-dir --require-hashes -r /opt/build.txt \
 && python3 -m venv --without-pip /opt/venv \
 && UV_CACHE_DIR=/root/.cache/uv UV_LINK_MODE=copy /tmp/tools/bin/uv pip sync -q --python /opt/venv/bin/python \
        --compile-bytecode --require-hashes /opt/operator.txt \
 && rm -rf /tmp/tools
ENV PATH=/opt/llmtrain/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/llmtrain \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp

FROM operator-deps AS code
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca \
    [ ! -f /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca \
 && python3 -m venv /opt/tools \
 && PIP_CERT=$SSL_CERT_FILE /opt/tools/bin/pip install -q --no-cache-dir --require-hashes -r /opt/build.txt
WORKDIR /src
COPY LICENSE pyproject.toml ./
COPY operator operator
COPY trainer_image trainer_image
# operator: everything but the trainer. agent: the trainer with the contract, for injection into images of users; it
# brings websockets without its compiled part, since those images may have another Python, prometheus_client, which has
# none, and catatonit, which is static. trainer: the agent's files.
# All of them have the project's metadata: torchrun finds the rendezvous backend by its entry point.
RUN set -eu; touch README.md; \
    /opt/tools/bin/python -m hatchling build -t wheel -d /wheel > /dev/null; \
    mkdir -p /out/operator/opt /out/trainer/opt/llmtrain/bin /agent/llmtrain_operator; \
    cd /out/operator/opt; \
    /opt/tools/bin/uv pip install -q --no-cache --no-deps --python /opt/venv/bin/python --target llmtrain /wheel/*.whl; \
    mv llmtrain/llmtrain_trainer /agent/; \
    cp -r llmtrain/llmtrain_operator/__init__.py llmtrain/llmtrain_operator/contract /agent/llmtrain_operator/; \
    cp -r llmtrain/llmtrain-*.dist-info /agent/; \
    cp -r /agent/* /out/trainer/opt/llmtrain/; \
    mv llmtrain/bin/llmtrain-agent /out/trainer/opt/llmtrain/bin/; \
    rm -rf llmtrain/devcluster llmtrain/.lock; \
    cp -r /opt/venv/lib/python3*/site-packages/websockets /opt/venv/lib/python3*/site-packages/prometheus_client /agent/; \
    find /agent -name '*.so' -delete; \
    cp "$(command -v catatonit)" /agent/; \
    mv /agent llmtrain-agent; \
    python3 -m compileall -q -s /out/operator -p / /out/operator; \
    python3 -m compileall -q -s /out/trainer -p / /out/trainer

FROM operator-deps AS operator
USER 65532:65532
WORKDIR /tmp
CMD ["llmtrain-operator"]
COPY --from=code /out/operator /

FROM base AS trainer-deps
COPY requirements/build.txt requirements/trainer.txt /opt/
RUN --mount=type=cache,id=llmtrain-uv,target=/root/.cache/uv \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    --mount=type=secret,id=ca \
    [ ! -f /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca \
 && python3 -m venv /tmp/tools \
 && PIP_CERT=$SSL_CERT_FILE /tmp/tools/bin/pip install -q --no-cache-dir --require-hashes -r /opt/build.txt \
 && python3 -m venv --without-pip /opt/venv \
 && UV_CACHE_DIR=/root/.cache/uv UV_LINK_MODE=copy /tmp/tools/bin/uv pip sync -q --python /opt/venv/bin/python \
        --compile-bytecode --require-hashes /opt/trainer.txt \
 && rm -rf /tmp/tools
ENV PATH=/opt/llmtrain/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/llmtrain \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TORCH_EXTENSIONS_DIR=/tmp/torch_extensions \
    HOME=/tmp

FROM trainer-deps AS trainer
USER 65532:65532
WORKDIR /tmp
CMD ["llmtrain-agent"]
COPY --from=code /out/trainer /
