# edgekd on 64-bit ARM, e.g. a Raspberry Pi 5 or a server. A device that only measures needs none of this: see devices.md.
FROM python:3.11-slim-bookworm

WORKDIR /opt/edgekd
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY edgekd ./edgekd
RUN pip install --no-cache-dir '.' -c constraints.txt \
 && useradd --create-home --uid 1000 edgekd

USER 1000
WORKDIR /work
ENTRYPOINT ["edgekd"]
CMD ["doctor"]
