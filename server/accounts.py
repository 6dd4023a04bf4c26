"""Accounts: who may do what, by tokens of an OpenID Connect provider such as Keycloak, set up as MONAI Label's are.

MONAI Label's own checking cannot be used: it names no algorithm, without which current PyJWT refuses every token, and it waits
for the provider in the event loop.
"""

from functools import lru_cache
from typing import Annotated, Any

import jwt
import requests
from fastapi import APIRouter, Depends, HTTPException, Request, Response, Security
from fastapi.security import OAuth2PasswordBearer, OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.endpoints.user.auth import DEFAULT_USER, User

from loop.errors import Forbidden, Unavailable

COOKIE = "nextslice_token"
"""For what cannot send a header: OHIF, pictures, links. No other site's page can make a browser send it."""

_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signed with a private key: a token signed with the provider's public key as a password is none."""

_KEY_SECONDS = 3600
_LEEWAY_SECONDS = 10

router = APIRouter(prefix="/auth", tags=["Accounts"])
_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


@lru_cache(maxsize=1)
def _provider(realm: str) -> dict[str, Any]:
    """What the provider says of itself; asked once, and again after an error."""
    told = requests.get(f"{realm}/.well-known/openid-configuration", timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
    told.raise_for_status()
    return dict(told.json())


@lru_cache(maxsize=1)
def _keys(address: str) -> jwt.PyJWKClient:
    return jwt.PyJWKClient(address, lifespan=_KEY_SECONDS, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)


def user_of(token: str) -> User:
    """Whose a token is.

    Raises:
        jwt.InvalidTokenError: it is not the provider's, or over. Unavailable: the provider does not answer.
    """
    realm = settings.MONAI_LABEL_AUTH_REALM_URI
    try:
        key = _keys(_provider(realm)["jwks_uri"]).get_signing_key_from_jwt(token)
    except (requests.RequestException, jwt.PyJWKClientConnectionError, KeyError, ValueError) as error:
        raise _no_provider(error) from None
    except jwt.PyJWKClientError as error:
        raise jwt.InvalidTokenError(str(error)) from None
    claims = jwt.decode(
        token,
        key.key,
        algorithms=_ALGORITHMS,
        leeway=_LEEWAY_SECONDS,
        options={"verify_aud": False, "require": ["exp"]},
    )
    roles: Any = claims
    for step in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(step) if isinstance(roles, dict) else None
    username = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME)
    if not isinstance(username, str) or not username:
        raise jwt.InvalidTokenError(f"The token has no {settings.MONAI_LABEL_AUTH_TOKEN_USERNAME}.")
    return User(
        username=username,
        email=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL)),
        name=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME)),
        roles=[role for role in roles if isinstance(role, str)] if isinstance(roles, list) else [],
    )


def _text(claim: object) -> str | None:
    return claim if isinstance(claim, str) else None


def _no_provider(error: Exception) -> Unavailable:
    return Unavailable(
        f"The accounts' provider {settings.MONAI_LABEL_AUTH_REALM_URI} does not answer as it should "
        f"({type(error).__name__}). Try again later."
    )


def _signed_in(request: Request, token: Annotated[str | None, Depends(_bearer)] = None) -> User:
    token = token or request.cookies.get(COOKIE)
    if not token:
        raise _unauthorized("Please sign in.")
    try:
        return user_of(token)
    except jwt.InvalidTokenError:
        raise _unauthorized("Please sign in again.") from None


async def _everybody() -> User:
    return DEFAULT_USER


current_user = _signed_in if settings.MONAI_LABEL_AUTH_ENABLE else _everybody
"""Who asks; where no accounts are switched on, everybody is the same and may do everything."""


def _unauthorized(why: str) -> HTTPException:
    return HTTPException(401, why, {"WWW-Authenticate": "Bearer"})


class Role:
    """A dependency that lets in whom the provider gives this role; 401 without a valid token, 403 without the role."""

    def __init__(self, role: str) -> None:
        self.role = role

    async def __call__(self, user: Annotated[User, Security(current_user)]) -> User:
        if self.role not in user.roles:
            raise Forbidden(f"{user.username} has not the role {self.role} that this needs.")
        return user


@router.get("/", summary="Whether there are accounts")
def enabled() -> dict[str, Any]:
    """As MONAI Label tells it."""
    return {
        "enabled": settings.MONAI_LABEL_AUTH_ENABLE,
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "realm": settings.MONAI_LABEL_AUTH_REALM_URI,
    }


@router.post("/token", summary="Sign in")
def sign_in(
    form: Annotated[OAuth2PasswordRequestForm, Depends()], request: Request, response: Response
) -> dict[str, Any]:
    """A token for name and password, for the header `Authorization: Bearer`; browsers get it as a cookie too.

    401: the provider does not know them. 503: it does not answer.
    """
    asked = {
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "username": form.username,
        "password": form.password,
        "grant_type": "password",
    }
    try:
        address = _provider(settings.MONAI_LABEL_AUTH_REALM_URI)["token_endpoint"]
        answer = requests.post(address, data=asked, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT)
        if answer.status_code in (400, 401, 403):
            raise _unauthorized("The name or the password is wrong.")
        answer.raise_for_status()
        told = answer.json()
        token = str(told["access_token"])
    except (requests.RequestException, KeyError, ValueError) as error:
        raise _no_provider(error) from None
    response.set_cookie(
        COOKIE,
        token,
        max_age=told.get("expires_in"),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return {"access_token": token, "token_type": told.get("token_type", "Bearer")}


@router.delete("/token", summary="Sign out", status_code=204)
def sign_out(response: Response) -> None:
    """Takes the cookie back; a token that somebody kept is good until it is over."""
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


@router.get("/token/valid", summary="Whose the token is")
def whose(user: Annotated[User, Security(current_user)]) -> User:
    return user
