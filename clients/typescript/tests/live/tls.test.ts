/** The client against a real service that asks for a client certificate and an API key. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { ModelClient, type TlsOptions } from "../../src/index.js";
import { ADDRESS, MODEL } from "./service.js";

const pem = (name: string) => readFileSync(join(process.env.AIMASS_TEST_CERTIFICATES ?? "", name), "utf8");
const ca = pem("ca.pem");
const mutual: TlsOptions = { ca, cert: pem("client.pem"), key: pem("client.key"), serverName: "aimass.test" };
const apiKey = "a-long-and-random-key";

test("certificate and key let the caller in", async () => {
  using client = new ModelClient({ address: ADDRESS, tls: mutual, apiKey });
  const [model] = await client.list();
  assert.equal(model?.name, MODEL);
});

test("a wrong or missing key is UNAUTHENTICATED", async () => {
  for (const keys of [{}, { apiKey: "another-key" }]) {
    using client = new ModelClient({ address: ADDRESS, tls: mutual, ...keys });
    await assert.rejects(client.list(), { code: "UNAUTHENTICATED", reason: "UNAUTHENTICATED" });
  }
});

test("no certificate, an unknown authority or another server's name: no connection", async () => {
  const { cert, key } = { cert: pem("client.pem"), key: pem("client.key") };
  for (const tls of [
    { ca, serverName: "aimass.test" },
    { cert, key },
    { ...mutual, serverName: "other.test" },
  ]) {
    using client = new ModelClient({ address: ADDRESS, tls, apiKey });
    await assert.rejects(client.list(), { code: "UNAVAILABLE" });
  }
});

test("plain text is not answered", async () => {
  using client = new ModelClient({ address: ADDRESS, apiKey });
  await assert.rejects(client.list(), { code: "UNAVAILABLE" });
});
