# CPU image, without root:
#   docker build -t polysem . && mkdir -p runs
#   docker run --rm --user "$(id -u)" -v "$PWD/runs:/home/polysem/runs" polysem demo --out runs/demo
FROM python:3.11-slim
# torch's CPU wheels have an index of their own; without it pip takes the CUDA build: --build-arg TORCH_INDEX=ADDRESS
ARG TORCH_INDEX=""
RUN useradd --create-home polysem
WORKDIR /build
COPY constraints.txt requirements.lock ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
 && pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY zoo zoo
RUN pip install --no-cache-dir --no-deps . ./zoo && rm -rf /build
# whoever it runs as (--user) has no home here: caches go where anybody may write, and torch asks for a name
ENV HOME=/tmp USER=polysem
USER polysem
WORKDIR /home/polysem
ENTRYPOINT ["polysem"]
CMD ["--help"]
