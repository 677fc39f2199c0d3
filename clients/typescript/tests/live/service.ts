/** Where the service under test listens: set by whoever started it (`tests/clients/test_typescript_client.py`). */

function required(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: these tests need a running service`);
  return value;
}

export const ADDRESS = required("AIMASS_TEST_ADDRESS");
export const MODEL = required("AIMASS_TEST_MODEL");
