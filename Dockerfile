# The command line in an image:
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
# Whatever a run leaves is in /app/runs, to be mounted: downloads and compiled programs too.
ENV FMJAX_CACHE=/app/runs/.cache MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home --uid 1000 fmjax && install --directory --owner fmjax /app/runs
WORKDIR /app
COPY configs configs
USER 1000
# In this form fmjax is the container's first process and hears its SIGTERM.
ENTRYPOINT ["fmjax"]
CMD ["--help"]
