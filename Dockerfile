# Trainwright on the CPU:  docker build -t trainwright .  &&  docker run --rm trainwright plan --list devices
# Files of yours: docker run --rm -v "$PWD:/work" trainwright plan --model config.json ...
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
# Where torch's builds without CUDA are.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/trainwright
WORKDIR /source
# torch before all else: it is most of the image, and is taken from the cache until its version changes.
COPY constraints.txt ./
RUN /opt/trainwright/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY . .
RUN /opt/trainwright/bin/pip install --constraint constraints.txt .

FROM python:${PYTHON}-slim-bookworm
RUN useradd --uid 1000 --create-home trainwright && install -d -o trainwright /work
COPY --from=build /opt/trainwright /opt/trainwright
ENV PATH=/opt/trainwright/bin:${PATH}
USER 1000
WORKDIR /work
ENTRYPOINT ["trainwright"]
CMD ["--help"]
