"""Small work takes one thread of the processor, and gives the host's setting back in every case."""

import threading

import pytest
import torch

from seed_core import DecodeOptions, GenerationOptions
from seed_core.bench import subject
from seed_core.compute import threads
from seed_core.compute.threads import SMALL, takes_one_thread, threads_for
from seed_core.llm.llama import Llama

CPU = torch.device("cpu")
HOSTS = 4
WEIGHTS = 1000
NETWORK = torch.nn.Linear(10, 100, bias=False, device="meta")
LARGE = SMALL // WEIGHTS  # times


@pytest.fixture(autouse=True)
def hosts_threads():
    """As on a machine with more cores than this one may have."""
    before = torch.get_num_threads()
    torch.set_num_threads(HOSTS)
    yield
    assert torch.get_num_threads() == HOSTS
    torch.set_num_threads(before)


def in_a_new_thread(call):
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def seen(monkeypatch):
    """The threads that each product of the networks ran on."""
    numbers, product = set(), torch.nn.functional.linear

    def counted(*arguments, **named):
        numbers.add(torch.get_num_threads())
        return product(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    return numbers


def test_small_work_takes_one_thread_and_gives_the_hosts_back():
    with threads_for(CPU, NETWORK, LARGE - 100):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == HOSTS


def test_large_work_keeps_the_hosts_threads():
    with threads_for(CPU, NETWORK, LARGE):
        assert torch.get_num_threads() == HOSTS


def test_work_on_a_card_keeps_the_hosts_threads():
    with threads_for(torch.device("cuda"), NETWORK, 1):
        assert torch.get_num_threads() == HOSTS


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_or_a_stop_gives_the_hosts_threads_back(error):
    with pytest.raises(error), threads_for(CPU, NETWORK, 1):
        raise error
    assert torch.get_num_threads() == HOSTS


def test_a_setting_that_fails_half_way_is_taken_back(monkeypatch):
    def fail(number):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_in_a_thread_of_its_own", fail)
    with pytest.raises(RuntimeError, match="new thread"), threads_for(CPU, NETWORK, 1):
        pass
    assert torch.get_num_threads() == HOSTS


def test_small_work_inside_small_work_leaves_it_small():
    with threads_for(CPU, NETWORK, 1):
        with threads_for(CPU, NETWORK, 1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1


def test_a_thread_that_begins_meanwhile_has_the_hosts_threads():
    """torch gives each thread, when it first computes, what was set last by any."""
    with threads_for(CPU, NETWORK, 1):
        assert in_a_new_thread(torch.get_num_threads) == HOSTS
        assert torch.get_num_threads() == 1
    assert in_a_new_thread(torch.get_num_threads) == HOSTS


def test_a_thread_that_computes_meanwhile_keeps_its_own():
    started, small, found = threading.Event(), threading.Event(), []

    def compute():
        found.append(torch.get_num_threads())
        started.set()
        small.wait()
        found.append(torch.get_num_threads())

    other = threading.Thread(target=compute)
    other.start()
    started.wait()
    with threads_for(CPU, NETWORK, 1):
        small.set()
        other.join()
    assert found == [HOSTS, HOSTS]


def test_every_part_of_seed_mini_takes_one_thread(mini_llm, mini_tokenizer, mini_decoder, seen):
    def taken():
        numbers = set(seen)
        seen.clear()
        return numbers

    side = mini_tokenizer.image_size
    codes = mini_tokenizer.encode(torch.zeros(1, 3, side, side))
    assert taken() == {1}
    embedding = mini_tokenizer.embed(codes)
    assert taken() == {1}
    mini_decoder.decode(embedding, options=DecodeOptions(num_inference_steps=1))
    assert taken() == {1}
    generators = [torch.Generator().manual_seed(i) for i in range(8)]
    mini_llm.generate_batch("hi", options=GenerationOptions("text", 2), generators=generators)
    assert taken() == {1}


def test_long_prompts_and_large_pictures_keep_the_hosts_threads(mini_llm, mini_decoder, seen):
    mini_llm.generate("word " * 150, options=GenerationOptions("text", 1))
    assert seen == {HOSTS}
    seen.clear()
    size = 2 * mini_decoder.size
    options = DecodeOptions(num_inference_steps=1, width=size, height=size)
    mini_decoder.decode(torch.zeros(1, mini_decoder.embedding_dim), options=options)
    assert seen == {HOSTS}


@pytest.mark.parametrize("size", ["300m", "8b"])
def test_one_token_of_a_published_size_is_not_small(size):
    """Its weights come from memory, which one core cannot read as fast as several."""
    module = Llama(subject.Subject(size, CPU, torch.float32).config, device="meta")
    assert not takes_one_thread(CPU, module, 1)


def test_stop_in_a_reply_or_a_picture_gives_the_hosts_threads_back(mini_llm, mini_decoder):
    def stop(*_):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mini_llm.generate("hi", on_token=stop)
    assert torch.get_num_threads() == HOSTS
    with pytest.raises(KeyboardInterrupt):
        mini_decoder.decode(torch.zeros(1, mini_decoder.embedding_dim), on_step=stop)
    assert torch.get_num_threads() == HOSTS
