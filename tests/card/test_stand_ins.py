"""The stand-ins do what they say, so that a law that holds means something."""

import importlib

import pytest
import torch

MIB = 2**20


@pytest.fixture
def fault(played):
    """The record of one thing done wrong on purpose."""
    records = {record.action.partition("name=")[2]: record for record in played}
    return records.__getitem__


faults = pytest.mark.parametrize("played", ["RTX 4090: faults"], indirect=True)


@pytest.mark.host
@faults
def test_two_devices_are_seen(fault):
    assert "same device" in fault("two_devices").error


@pytest.mark.host
@faults
def test_two_dtypes_are_seen(fault):
    assert "different dtypes" in fault("two_dtypes").error


@pytest.mark.host
@faults
def test_each_look_at_a_value_is_a_wait(fault):
    assert sum(fault("three_looks").waits.values()) == 3
    assert sum(fault("mask").waits.values()) == 1


@pytest.mark.host
@faults
def test_a_wait_inside_a_capture_is_an_error(fault):
    assert "not permitted when stream is capturing" in fault("look_in_capture").error
    assert len(fault("look_in_capture").graphs) == 1


@pytest.mark.host
@faults
def test_only_kernels_are_launches(fault):
    assert fault("one_launch").launches == {"add_": 1}


@pytest.mark.host
@faults
def test_a_card_has_an_end(fault):
    assert fault("full").error.startswith("OutOfMemoryError")
    assert fault("garbage").error == ""


@pytest.mark.host
@faults
def test_layers_that_the_host_does_not_know_are_seen_to_travel_each_time(fault):
    """Four weights of 32 MiB, made ready twice."""
    assert fault("plain_layers").up == 2 * 4 * 32 * MIB
    assert fault("host_layers").up == 4 * 32 * MIB


# --- the driver of dynamic memory, without torch's or the host's part ---------------------------


@pytest.fixture
def driver(invented):
    """The driver's pages on a card of 6 GiB."""
    name = invented.__name__
    cards, memory, driver = (
        importlib.import_module(f"{name}.{part}") for part in ("cards", "memory", "driver")
    )
    card = memory.CardMemory(cards.Row.parse("RTX 3050"))
    made = driver.Driver(card)
    driver.ModelVBAR.driver = made
    made.module, made.PAGE = driver, driver.PAGE
    return made


def model(driver, gigabytes):
    """A model whose weights are a page each, with all that is on the card."""
    pages = gigabytes * 2**30 // driver.PAGE
    made = driver.module.ModelVBAR(gigabytes * 2**30, 0)
    weights = [made.alloc(driver.PAGE) for _ in range(pages)]
    return made, weights


def use(model, weights):
    """Have each weight once; how many there was room for."""
    found = 0
    for _, offset, size in weights:
        found += model.fault(offset, size) is not None
        model.unpin(offset, size)
    return found


def test_a_page_stays_where_there_is_room_and_keeps_its_signature(driver):
    small, weights = model(driver, 2)
    assert use(small, weights) == len(weights)
    assert small.loaded_size() == 2 * 2**30
    first = small.fault(*weights[0][1:])
    assert first == small.fault(*weights[0][1:])


def test_what_does_not_fit_is_refused_and_what_fits_stays(driver):
    large, weights = model(driver, 8)
    use(large, weights)
    fits = use(large, weights)
    assert 0 < fits < len(weights)
    assert use(large, weights) == fits
    assert large.loaded_size() == fits * driver.PAGE <= driver.memory.total


def test_the_model_used_last_takes_the_pages_of_the_others(driver):
    """And a page that was taken away comes back with another signature."""
    first, weights = model(driver, 4)
    use(first, weights)
    end = weights[-1][1:]
    signature = first.fault(*end)
    first.unpin(*end)
    second, others = model(driver, 4)
    assert use(second, others) == len(others)
    assert first.loaded_size() < 4 * 2**30
    assert first.fault(*end) is None
    first.prioritize()
    assert first.fault(*end) not in (None, signature)


def test_tensors_take_the_place_of_pages(driver):
    small, weights = model(driver, 5)
    use(small, weights)
    with torch.device("meta"):
        tensor = torch.empty(2 * 2**30, dtype=torch.uint8)
    driver.memory.hold(tensor)
    assert driver.memory.live == 2 * 2**30
    assert driver.memory.free >= 0
    assert small.loaded_size() < 4 * 2**30
    del tensor
    assert driver.memory.live == 0


def test_pages_of_a_model_that_is_gone_are_free(driver):
    small, weights = model(driver, 2)
    use(small, weights)
    del small, weights
    assert driver.size() == 0
