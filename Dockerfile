# The code and all that it needs. torch from PyPI brings CUDA along: of the machine it takes the driver only.
#   docker build --tag project --build-arg COMMIT="$(git rev-parse HEAD)" .
#   docker run --rm --volume "$PWD/data:/data" --volume "$PWD/logs:/logs" project \
#       fit --config laptop --data_dir /data --run_folder /logs/a
FROM python:3.12-slim-bookworm

# First what seldom changes: then a change of the code builds in a second.
WORKDIR /opt/project
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt

COPY run.py ./
COPY src ./src
COPY data/get_data.py data/colour_mnist.py ./data/

# Which code this is: there is no git in the image.
ARG COMMIT=unknown
LABEL org.opencontainers.image.revision=$COMMIT
ENV PYTHONUNBUFFERED=1

# SageMaker's folders belong to root: for it build with --build-arg RUN_AS=root
RUN useradd --create-home --uid 1000 trainer
ARG RUN_AS=trainer
USER $RUN_AS

ENTRYPOINT ["python", "/opt/project/src/train.py"]
CMD ["--help"]
