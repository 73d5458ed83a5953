"""What is fetched into the data folder: names of files, relative to it.

They stand here and not with the data sets and networks, which bring torch, so that `amed tasks` says at once what is
missing.
"""

CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST_FILE = "test_batch.bin"
CIFAR10_FILES = tuple(f"{CIFAR10_FOLDER}/{name}" for name in (*CIFAR10_TRAIN_FILES, CIFAR10_TEST_FILE))

FASHION_FOLDER = "FashionMNIST/raw"
FASHION_TRAIN_IMAGES = f"{FASHION_FOLDER}/train-images-idx3-ubyte"
FASHION_TRAIN_LABELS = f"{FASHION_FOLDER}/train-labels-idx1-ubyte"
FASHION_TEST_IMAGES = f"{FASHION_FOLDER}/t10k-images-idx3-ubyte"
FASHION_TEST_LABELS = f"{FASHION_FOLDER}/t10k-labels-idx1-ubyte"
FASHION_FILES = (FASHION_TRAIN_IMAGES, FASHION_TRAIN_LABELS, FASHION_TEST_IMAGES, FASHION_TEST_LABELS)

KEYWORDS_FILE = "kws_mlperf_tiny_1000.npz"

RESNET8_WEIGHTS = "weights/mlperftiny_ic_resnet8.safetensors"
RESNET20_WEIGHTS = "weights/cifar10_resnet20.safetensors"
RESNET56_WEIGHTS = "weights/cifar10_resnet56.safetensors"
DS_CNN_WEIGHTS = "weights/mlperftiny_kws_dscnn.safetensors"
