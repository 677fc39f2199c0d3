/** What a service serves, and in what state. Every aimass service answers this client. */

import type { CallOptions } from "./call.js";
import { AimassError } from "./errors.js";
import { type Model, ModelService } from "./gen/aimass/model/v1/model_service_pb.js";
import { ServiceClient } from "./service-client.js";

/** Client of `aimass.model.v1.ModelService`. All methods throw `AimassError`. */
export class ModelClient extends ServiceClient {
  readonly #service = this.connection.client(ModelService);

  /** Returns every model of the service, ready or not: by name, then newest version first. */
  async list(options: CallOptions = {}): Promise<Model[]> {
    const { models } = await this.connection.unary(
      (callOptions) => this.#service.listModels({}, callOptions),
      options,
    );
    return models;
  }

  /** Returns one model, by `name` or `name@version`. */
  async get(model: string, options: CallOptions = {}): Promise<Model> {
    const response = await this.connection.unary(
      (callOptions) => this.#service.getModel({ model }, callOptions),
      options,
    );
    if (response.model === undefined) {
      throw new AimassError({ code: "UNKNOWN", message: "the server sent an answer without a model" });
    }
    return response.model;
  }
}
