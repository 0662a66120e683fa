-- A job that may ask for the tool "get_weather", and waits for its answers. On Postgres: SET search_path TO promptmill;
INSERT INTO jobs (prompt, params, policy) VALUES (
    'What is the weather in Kyoto and in Lima? [[stop tool_use 2]]',
    '{"tools": [{
        "name": "get_weather",
        "description": "Says what the weather is like in a place.",
        "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
    }]}',
    '{"on_tool_use": "wait"}');
