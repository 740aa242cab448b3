"""How a method that is written once becomes one of both clients, with its types.

A method decorated with `Operation` returns a plan. On a client for threads it carries the plan out and gives its
result; on one for asyncio it gives a coroutine that does. So the arguments, their defaults and the documentation are in
one place, and the type checker sees what each client really has.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from forebay_client._steps import Plan, Series

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """A client that carries plans out in the caller's thread."""

    def _carry_out(self, plan: Plan[T]) -> T:
        raise NotImplementedError

    def _iterate(self, series: Series[T]) -> Iterator[T]:
        raise NotImplementedError


class Awaiting:
    """A client that carries plans out in the caller's task."""

    def _carry_out(self, plan: Plan[T]) -> Coroutine[Any, Any, T]:
        raise NotImplementedError

    def _iterate(self, series: Series[T]) -> AsyncIterator[T]:
        raise NotImplementedError


class Operation(Generic[P, T]):
    """A method that has one result."""

    def __init__(self, method: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Plan[T]]: ...

    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Blocking | Awaiting | None, owner: type) -> Any:
        method = self._method
        if client is None:
            return method  # with its documentation and signature

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._carry_out(method(client, *args, **kwargs))  # noqa: SLF001  # the clients' own

        return call


class Iteration(Generic[P, T]):
    """A method that gives an iterator."""

    def __init__(self, method: Callable[Concatenate[Any, P], Series[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Series[T]]: ...

    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncIterator[T]]: ...

    def __get__(self, client: Blocking | Awaiting | None, owner: type) -> Any:
        method = self._method
        if client is None:
            return method

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._iterate(method(client, *args, **kwargs))  # noqa: SLF001  # the clients' own

        return call
