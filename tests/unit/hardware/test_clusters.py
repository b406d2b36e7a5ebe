"""Clusters: the catalogue, TOML files, this machine, and what is refused."""

import dataclasses
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpage.errors import InvalidValue
from alpage.hardware import (
    Cluster,
    Device,
    Link,
    catalogue_names,
    resolve_cluster,
    save_local,
)
from alpage.hardware.cluster_file import cluster_from_toml, to_toml
from alpage.hardware.device import DEVICE_KINDS, DTYPES
from alpage.units import GiB

POSITIVE = st.floats(1e-9, 1e18)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)


@st.composite
def links(draw, topology):
    return Link(
        name=draw(TEXT),
        topology=topology,
        bytes_per_s=draw(POSITIVE),
        latency_s=draw(st.floats(0, 1)),
        source=draw(TEXT),
    )


@st.composite
def clusters(draw):
    torus = draw(st.none() | st.lists(st.integers(1, 16), min_size=1, max_size=3).map(tuple))
    num_hosts = draw(st.integers(1, 100))
    return Cluster(
        name=draw(TEXT),
        device=Device(
            name=draw(TEXT),
            kind=draw(st.sampled_from(DEVICE_KINDS)),
            flops_per_s=draw(st.dictionaries(st.sampled_from(DTYPES), POSITIVE, min_size=1)),
            memory_bytes=draw(st.integers(1, 2**50)),
            memory_bytes_per_s=draw(POSITIVE),
            source=draw(TEXT),
        ),
        num_hosts=num_hosts,
        devices_per_host=draw(st.integers(1, 72)) if torus is None else math.prod(torus),
        link=draw(links("torus" if torus else draw(st.sampled_from(["ring", "switch"])))),
        network=draw(links("switch")) if num_hosts > 1 else None,
        torus=torus,
    )


@given(clusters())
def test_toml_round_trip(cluster):
    assert cluster_from_toml(to_toml(cluster)) == cluster


@pytest.mark.parametrize("family", catalogue_names())
def test_catalogue_entry_has_sources_and_makes_sense(family):
    one = resolve_cluster(f"{family}-1")
    many = resolve_cluster(f"{family}-256")
    assert (one.num_devices, many.num_devices) == (1, 256)
    assert one.device == many.device
    for item in (one.device, one.link, many.network or many.link):
        assert item.source.startswith("https://")
    # A machine that computes less than it reads, or sends faster, is a slip of the pen.
    speeds = one.device.flops_per_s.values()
    assert min(speeds) > one.device.memory_bytes_per_s > one.link.bytes_per_s
    if many.network is not None:
        host_bytes_per_s = many.devices_per_host * many.link.bytes_per_s
        assert host_bytes_per_s > many.network.bytes_per_s


@pytest.mark.parametrize(
    ("num_devices", "torus"),
    [
        (8, (2, 2, 2)),
        (16, (2, 4, 2)),
        (32, (4, 2, 4)),
        (64, (4, 4, 4)),
        (128, (8, 4, 4)),
        (256, (4, 8, 8)),
    ],
)
def test_tpu_v4_is_the_papers(num_devices, torus):
    """Pope et al. 2022, arXiv:2211.05102, section 2."""
    cluster = resolve_cluster(f"tpu-v4-{num_devices}")
    assert cluster.torus == torus
    assert cluster.network is None
    assert cluster.device.flops_per_s_of("bfloat16") == 275e12
    assert cluster.device.memory_bytes == 32 * GiB
    assert cluster.device.memory_bytes_per_s == 1200e9
    assert cluster.link.bytes_per_s == 270e9


def test_hosts_of_the_catalogue():
    v100 = resolve_cluster("v100-64")
    assert (v100.num_hosts, v100.devices_per_host) == (8, 8)
    assert v100.network.bytes_per_s * 8 == 25e9
    h100 = resolve_cluster("h100-4")
    assert (h100.num_hosts, h100.devices_per_host, h100.network) == (1, 4, None)


def test_speed_of_a_dtype_that_the_data_sheet_does_not_give():
    with pytest.raises(InvalidValue) as error:
        resolve_cluster("v100-8").device.flops_per_s_of("bfloat16")
    assert str(error.value) == (
        "dtype='bfloat16': is none that the speed of Tesla V100-SXM2-16GB is known for. "
        "Choose one of float16, float32, float64."
    )


NAMES = {
    "no size": ("h100", "none of tpu-v4-N, tpu-v5e-N"),
    "no such name": ("h10-8", "Perhaps you mean h100-8"),
    "far from any": ("mainframe", "Choose a name, such as h100-8"),
    "not whole hosts": ("h100-12", "comes with 1 to 8, or 8 times any number of devices"),
    "no devices": ("a100-0", "comes with 1 to 8"),
    "no such slice": ("tpu-v5e-7", "comes with 1, 4, 8, 16, 32, 64, 128, 256 devices"),
    "no slice at all": ("tpu-v4-0", "comes with 1, 4, 8"),
    "a very long number": (f"h100-{'9' * 5000}", "with N devices"),
    "not digits": ("h100-८", "with N devices"),
    "empty": ("", "with N devices"),
    "no such file": ("/no/such.toml", "cannot be read: No such file or directory"),
    "not measured": ("local", "was not measured. Run: alpage hardware."),
    "not measured so": ("local-3", "with that many devices. Run: alpage hardware --devices 3."),
}


@pytest.mark.parametrize(("name", "message"), NAMES.values(), ids=NAMES)
def test_refuses_what_is_no_cluster(name, message, tmp_path):
    with pytest.raises(InvalidValue) as error:
        resolve_cluster(name, cache=tmp_path)
    assert error.value.field == "cluster"
    assert message in str(error.value)


def test_local_is_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    two = dataclasses.replace(resolve_cluster("h100-2"), name="local-2")
    four = dataclasses.replace(resolve_cluster("h100-4"), name="local-4")
    save_local(four, is_default=True)
    path = save_local(two, is_default=False)
    assert resolve_cluster("local") == resolve_cluster("local-4") == four
    assert resolve_cluster("local-2") == resolve_cluster(str(path)) == two
    assert path.parent == tmp_path / "alpage" / "clusters"
    assert len(list(path.parent.iterdir())) == 3


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidValue, match="XDG_CACHE_HOME"):
        save_local(resolve_cluster("h100-2"), is_default=True, cache=tmp_path / "file")


GOOD = to_toml(resolve_cluster("v100-16"))
SWAPS = {
    "missing": ("num_hosts = 2\n", "", "file.num_hosts=None: is missing, and must be a whole"),
    "missing in a table": ('kind = "gpu"\n', "", "file: device.kind=None: is missing"),
    "unknown": ("num_hosts", "hosts", "file.num_hosts=None: is missing"),
    "unknown in a table": ("[link]\n", "[link]\nspeed = 1\n", "file: link.speed=1: is not a key"),
    "a text for a number": ("= 900000000000.0", '= "1"', "memory_bytes_per_s='1': must be a num"),
    "a fraction of a host": ("num_hosts = 2", "num_hosts = 2.5", "num_hosts=2.5: must be a whole"),
    "a truth for a number": ("num_hosts = 2", "num_hosts = true", "num_hosts=True: must be a who"),
    "no hosts": ("num_hosts = 2", "num_hosts = 0", "num_hosts=0: must be a number above 0"),
    "a huge number": ("= 2\n", f"= {10**400}\n", "must be a whole number"),
    "not a number": ("= 900000000000.0", "= nan", "memory_bytes_per_s=nan: must be a number above"),
    "infinite": ("= 3125000000.0", "= inf", "Ethernet of p3.16xlarge: bytes_per_s=inf: must be"),
    "negative latency": ("= 1.9e-06", "= -1.9e-06", "latency_s=-1.9e-06: must be a number of sec"),
    "unknown dtype": ("float16", "fp16", "flops_per_s='fp16': must be one of float64, float32"),
    "no speed": ("float16 = 125000000000000.0", "float16 = 0", "flops_per_s.float16=0.0: must be"),
    "unknown kind": ('"gpu"', '"npu"', "kind='npu': must be one of tpu, gpu, cpu"),
    "unknown topology": ('"ring"', '"tree"', "topology='tree': must be one of torus, ring, swi"),
    "a key twice": ('topology = "ring"', 'topology = "ring"\nsource = ""', "is not TOML"),
    "empty name": ('name = "v100-16"', 'name = " "', "cluster: name=' ': must not be empty"),
    "no network": ("num_hosts = 2", "num_hosts = 1", "network='25 Gb/s Ethernet of p3.16xlarge'"),
    "a torus of no torus": ("num_hosts", "torus = [8]\nnum_hosts", "torus=(8,): must be given if"),
    "a torus of words": ("num_hosts", 'torus = ["8"]\nnum_hosts', "torus='8': must be a whole"),
    "a torus without a shape": ('"ring"', '"torus"', "torus=None: must be given if"),
    "not TOML": ("[link]", "[link", "is not TOML: "),
}


@pytest.mark.parametrize(("old", "new", "message"), SWAPS.values(), ids=SWAPS)
def test_refuses_bad_files(old, new, message, tmp_path):
    assert old in GOOD
    path = tmp_path / "file"
    with pytest.raises(InvalidValue) as error:
        cluster_from_toml(GOOD.replace(old, new, 1), field="file")
    assert message in str(error.value)
    assert error.value.remedy
    path.with_suffix(".toml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidValue):
        resolve_cluster(str(path.with_suffix(".toml")))


def test_refuses_a_torus_with_other_places():
    toml = to_toml(resolve_cluster("tpu-v4-64")).replace("[4, 4, 4]", "[4, 4, 2]")
    with pytest.raises(InvalidValue, match="has 32 places for 64 devices"):
        cluster_from_toml(toml)


def test_refuses_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "cluster.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(InvalidValue, match="it is not UTF-8"):
        resolve_cluster(str(path))


def test_the_example_of_the_documentation_is_a_cluster():
    from alpage.hardware import cluster_file

    example = cluster_file.__doc__.partition("::")[2].partition("`network` is")[0]
    network = tomllib.loads(example.replace("[network]", "").replace("...", ""))["link"]
    lines = [f"{key} = {value!r}" for key, value in network.items()]
    cluster = cluster_from_toml(example.replace("...", "\n".join(lines)))
    assert cluster.num_devices == 16
