{%- if var("bots") is string or var("bots") is mapping or "" in var("bots") %}
{{- exceptions.raise_compiler_error("bots: " ~ var("bots") ~ " is not a list of ids, such as [u_1]") }}
{%- endif %}
{%- for bot in var("bots") %}
SELECT '{{ bot | replace("'", "''") }}' AS sender_id
{%- if not loop.last %} UNION ALL{% endif %}
{%- else %}
SELECT CAST(NULL AS {{ dbt.type_string() }}) AS sender_id WHERE 1 = 0
{%- endfor %}
