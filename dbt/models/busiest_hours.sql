{# Written by `./dev docs --write` from imbrace_lake/query/views.py. #}
SELECT organization_id, {{ imbrace_lake.days("local_at") }} % 7 + 1 AS weekday,
       CAST(extract(hour FROM local_at) AS BIGINT) AS hour_of_day,
       count(*) AS contact_messages, count(DISTINCT conversation_id) AS conversations
FROM {{ ref('messages') }}
WHERE NOT is_deleted AND sender_role = 'contact' AND local_at IS NOT NULL
GROUP BY organization_id, {{ imbrace_lake.days("local_at") }} % 7 + 1,
         CAST(extract(hour FROM local_at) AS BIGINT)
