/** What the clients have in common. Knows no service. */

import { Connection, type ConnectionOptions } from "./connection.js";

/** A client and its connection: its own, which ends with it, or one that it was given. */
export abstract class ServiceClient {
  protected readonly connection: Connection;
  readonly #ownsConnection: boolean;

  constructor(target: Connection | ConnectionOptions) {
    this.#ownsConnection = !(target instanceof Connection);
    this.connection = target instanceof Connection ? target : new Connection(target);
  }

  /** Closes the connection, unless it was given by the caller. Safe to repeat. */
  close(): void {
    if (this.#ownsConnection) this.connection.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
