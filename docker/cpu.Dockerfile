# No GPU: docker build -f docker/cpu.Dockerfile -t ipt-fast:cpu .
#         docker run --rm -v "$PWD:/photos" ipt-fast:cpu restore /photos/noisy.jpg -o /photos/clean.png --task denoise30 ...
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ipt-fast
COPY . .
RUN make .venv/.installed-demo
ENV PATH=/opt/ipt-fast/.venv/bin:$PATH
ENTRYPOINT ["ipt-fast"]
