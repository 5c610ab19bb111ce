# Image with the fmjax command line:
#
#     docker build -t fmjax .                             # CPU
#     docker build --build-arg EXTRA=cuda12 -t fmjax .    # NVIDIA GPUs (or cuda13)
#     docker build --build-arg EXTRA=tpu -t fmjax .       # Cloud TPU
#     docker run --rm fmjax plan configs/digits.py --topology cpu:8
FROM python:3.12-slim AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel /src

FROM python:3.12-slim
ARG EXTRA=""
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir "$(echo /wheel/fmjax-*.whl)${EXTRA:+[$EXTRA]}"
# Mount /app/runs: run folders, downloads and compiled programs are written to it.
ENV FMJAX_CACHE=/app/runs/.cache MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home --uid 1000 fmjax && install --directory --owner fmjax /app/runs
WORKDIR /app
COPY configs configs
USER 1000
# The exec form makes fmjax the first process of the container, which receives SIGTERM.
ENTRYPOINT ["fmjax"]
CMD ["--help"]
